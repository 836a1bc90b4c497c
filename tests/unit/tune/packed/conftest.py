"""Trials of a tiny model, packed on one base, and each alone as `ftray train` takes its steps."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ftray.config.base import apply, validated
from ftray.config.run import RunConfig
from ftray.data.batching.batches import EpochBatches, eval_packs
from ftray.data.batching.selection import eval_samples, training_samples
from ftray.data.rendering.chat import Tokens
from ftray.data.tokens.memory import MemoryRows
from ftray.train.optim import build_optimizer, learning_rate, set_learning_rate
from ftray.train.parallel import Place
from ftray.train.step import eval_loss, micro_batch, share, train_step
from ftray.train.trainee import Trainee, build_trainee, random_state
from ftray.tune.packed.intake import Tables
from ftray.tune.packed.trainer import PackedTrainer
from ftray.tune.packed.trial import Capacity, Trial

CPU = torch.device("cpu")
PLACE = Place(0, 1, CPU)


def rows(count: int, seed: int) -> MemoryRows:
    """Rows of 6 to 40 tokens, of which the first three are a prompt."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(6, 41, (count,), generator=generator).tolist()
    ids = [torch.randint(3, 259, (length,), generator=generator).tolist() for length in lengths]
    return MemoryRows([Tokens(one, bytes([0, 0, 0, *[1] * (len(one) - 3)])) for one in ids])


TRAIN, EVALS = rows(48, seed=1), rows(9, seed=2)
Change = dict[str, Any]


@pytest.fixture
def config_of(tiny_folder: Path) -> Callable[[Change], RunConfig]:
    """Make a run's config, with changes by dotted key."""

    def make(changes: Change) -> RunConfig:
        tree = {
            "name": "tickets",
            "model": {"name": str(tiny_folder)},
            "adapter": {"method": "lora", "rank": 8, "alpha": 16},
            "data": {"train": "unused.jsonl", "eval": "unused.jsonl", "max_length": 64},
            "train": {"max_steps": 12, "learning_rate": 1e-3, "global_batch_size": 4},
        }
        return validated(RunConfig, apply(tree, changes), "test")

    return make


@pytest.fixture
def trial_of(config_of: Callable[[Change], RunConfig]) -> Callable[[str, Change], Trial]:
    """Make a trial, with changes by dotted key."""
    return lambda name, changes: Trial(name, config_of(changes))


@pytest.fixture
def packed(
    config_of: Callable[[Change], RunConfig], tiny_folder: Path
) -> Callable[..., PackedTrainer]:
    """Build a host's trainer, with changes of the base's config by dotted key."""

    def make(changes: Change | None = None, *, slots: int = 8, tokens: int = 512) -> PackedTrainer:
        config, capacity = config_of(changes or {}), Capacity(slots, tokens)
        return PackedTrainer(config, tiny_folder, Tables(TRAIN, EVALS), CPU, capacity)

    return make


@dataclass(frozen=True)
class Alone:
    """A run's steps one by one, as the training loop takes them."""

    config: RunConfig
    trainee: Trainee
    optimizer: torch.optim.Optimizer
    batches: EpochBatches

    def step(self, step: int) -> dict[str, float]:
        train = self.config.train
        packs = self.batches.packs(step)
        work = [micro_batch(TRAIN, packs, some) for some in share(len(packs), PLACE, 2)]
        random_state(train.seed, step, PLACE.rank)
        rate = learning_rate(step, self.batches.total_steps, train)
        set_learning_rate(self.optimizer, rate)
        result = train_step(self.trainee, work, PLACE, train, step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {
            "step": step + 1,
            "epoch": self.batches.epoch_of(step),
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "learning_rate": rate,
            "tokens": result.counts.tokens,
            "label_tokens": result.counts.label_tokens,
            "samples": result.counts.samples,
        }

    def evaluate(self) -> float:
        data = self.config.data
        packs = eval_packs(eval_samples(EVALS.columns, EVALS, data)[0], data)
        work = [micro_batch(EVALS, packs, some) for some in share(len(packs), PLACE, 2)]
        return eval_loss(self.trainee, work, PLACE)


@pytest.fixture
def alone(tiny_folder: Path, tmp_path: Path) -> Callable[[RunConfig], Alone]:
    """Build what `ftray train` would train."""

    def make(config: RunConfig) -> Alone:
        trainee = build_trainee(config, tiny_folder, PLACE, str(tmp_path))
        optimizer = build_optimizer(trainee.attached.trainable.values(), config.train)
        samples = training_samples(TRAIN, config.data)[0]
        return Alone(config, trainee, optimizer, EpochBatches(samples, config.data, config.train))

    return make
