"""A model that learns on one worker, as the loop drives it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ftray.config.base import apply, validated
from ftray.config.run import RunConfig
from ftray.data.batching.samples import Sample
from ftray.data.rendering.chat import Tokens
from ftray.data.tokens.memory import MemoryRows
from ftray.train.optim import build_optimizer
from ftray.train.parallel import Place
from ftray.train.step import StepResult, micro_batch, train_step
from ftray.train.trainee import Trainee, build_trainee, random_state

PLACE = Place(0, 1, torch.device("cpu"))
ROWS = MemoryRows([Tokens([5 + i, 40, 41 + i, 42, 9] * 3, bytes([0, *[1] * 14])) for i in range(4)])
WHOLE = [Sample(key, 0, 15, 0) for key in range(4)]


@dataclass(frozen=True)
class Learner:
    config: RunConfig
    trainee: Trainee
    optimizer: torch.optim.Optimizer

    @property
    def trainable(self) -> dict[str, torch.nn.Parameter]:
        return self.trainee.attached.trainable

    def step(self, step: int) -> StepResult:
        """One optimizer step over the same four rows, in two micro-batches."""
        train = self.config.train
        packs = [WHOLE[:2], WHOLE[2:3], WHOLE[3:]]
        work = [micro_batch(ROWS, packs, some) for some in ([0, 1], [2])]
        random_state(train.seed, step, PLACE.rank)
        result = train_step(self.trainee, work, PLACE, train, step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return result

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: values.detach().clone() for name, values in self.trainable.items()}


@pytest.fixture
def config_of(tiny_folder: Path) -> Callable[[dict[str, Any]], RunConfig]:
    """Make a run's config, with changes by dotted key."""

    def make(changes: dict[str, Any]) -> RunConfig:
        tree = {
            "name": "tickets",
            "model": {"name": str(tiny_folder)},
            "data": {"train": "unused.jsonl", "max_length": 64},
            "train": {"max_steps": 8, "learning_rate": 1e-2},
        }
        return validated(RunConfig, apply(tree, changes), "test")

    return make


@pytest.fixture
def learner(
    config_of: Callable[[dict[str, Any]], RunConfig], tiny_folder: Path, tmp_path: Path
) -> Callable[[dict[str, Any]], Learner]:
    """Build a fresh model and its optimizer, with changes of the config by dotted key."""

    def make(changes: dict[str, Any]) -> Learner:
        config = config_of(changes)
        trainee = build_trainee(config, tiny_folder, PLACE, str(tmp_path))
        optimizer = build_optimizer(trainee.attached.trainable.values(), config.train)
        return Learner(config, trainee, optimizer)

    return make
