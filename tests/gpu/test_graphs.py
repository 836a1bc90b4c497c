"""Passes captured as CUDA graphs beside those that are launched kernel by kernel.

`pytest -m gpu tests/gpu/test_graphs.py`, on a machine with a CUDA device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from ftray.config.base import apply, override, validated
from ftray.config.run import RunConfig
from ftray.data.batching.samples import Pack, Sample
from ftray.data.rendering.chat import Tokens
from ftray.data.tokens.memory import MemoryRows
from ftray.model.fp8 import multiplies_fp8
from ftray.runs import Run
from ftray.train import checkpoint
from ftray.train.checkpoint import Progress
from ftray.train.optim import build_optimizer
from ftray.train.parallel import Place
from ftray.train.step import StepResult, eval_loss, micro_batch, share, train_step
from ftray.train.trainee import Trainee, build_trainee
from ftray.tune.packed.intake import Tables
from ftray.tune.packed.trainer import PackedTrainer
from ftray.tune.packed.trial import Capacity, Trial

# what torch's compiler warns itself of, within itself, stops it when it is raised
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]

PLACE = Place(0, 1, torch.device("cuda"))
COMPARED = ("loss", "grad_norm")
Change = dict[str, Any]
ROWS = MemoryRows([Tokens([5 + i, 40, 41 + i, 42, 9], bytes([0, 1, 1, 1, 1])) for i in range(6)])
KINDS: dict[str, dict[str, Any]] = {
    "lora with dropout": {"adapter": {"rank": 8, "dropout": 0.1}},
    "lora over fp8, recomputing": {
        "adapter": {"rank": 8, "base_precision": "fp8"},
        "train.activation_checkpointing": "layer",
    },
    "qlora": {"adapter": {"method": "qlora", "rank": 8}},
    "full": {"adapter": {"method": "full"}, "train.learning_rate": 1e-3},
}


def pack(documents: int) -> Pack:
    return [Sample(key % 6, 0, 5, 0) for key in range(documents)]


# micro-batches of two rows: one document each, several, more than sixteen
MIXED = [pack(number) for number in (1, 1, 2, 7, 12, 12)]


@dataclass(frozen=True)
class Learner:
    config: RunConfig
    trainee: Trainee
    optimizer: torch.optim.Optimizer

    def step(self, packs: list[Pack], number: int) -> StepResult:
        rows = 2 if len(packs) < 32 else 32
        work = [micro_batch(ROWS, packs, some) for some in share(len(packs), PLACE, rows)]
        result = train_step(self.trainee, work, PLACE, self.config.train, number)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return result


@pytest.fixture
def learner(tiny_folder: Path, tmp_path: Path) -> Callable[[dict[str, Any]], Learner]:
    def make(changes: dict[str, Any]) -> Learner:
        tree = {
            "name": "graphs",
            "model": {"name": str(tiny_folder)},
            "adapter": {"method": "lora", "rank": 8},
            "data": {"train": "unused.jsonl", "max_length": 64},
            "train": {"max_steps": 8, "learning_rate": 5e-3, "compile": True},
        }
        config = validated(RunConfig, apply(tree, changes), "test")
        trainee = build_trainee(config, tiny_folder, PLACE, str(tmp_path))
        optimizer = build_optimizer(trainee.attached.trainable.values(), config.train)
        return Learner(config, trainee, optimizer)

    return make


Learning = Callable[[dict[str, Any]], Learner]


@pytest.mark.parametrize("kind", KINDS)
def test_captured_passes_take_the_steps_of_launched_ones(
    kind: str, learner: Learning, tmp_path: Path
) -> None:
    """Also after an evaluation, and after a rewind to a checkpoint."""
    if "fp8" in kind and not multiplies_fp8(PLACE.device):
        pytest.skip("no Hopper")
    progress = Progress(4, {"loss": 1.0}, is_best=False, micro_batch_size=2)

    def learned(graphs: bool) -> tuple[list[float], list[float]]:
        one = learner({**KINDS[kind], "train.graphs": graphs})
        run = Run(str(tmp_path), "captured" if graphs else "launched")
        losses, norms = [], []
        for number in range(8):
            if number == 6:
                record = checkpoint.newest(run, PLACE, 1)
                assert record is not None
                trainable = one.trainee.attached.trainable
                checkpoint.load(run, record, trainable, one.optimizer)
            result = one.step(MIXED, number)
            losses.append(result.loss)
            norms.append(result.grad_norm)
            if number == 3:
                trainable = one.trainee.attached.trainable
                checkpoint.save(run, trainable, one.optimizer, progress, PLACE, 1)
                losses.append(eval_loss(one.trainee, [micro_batch(ROWS, MIXED, [2, 3])], PLACE))
        assert (one.trainee.graphs is not None) == graphs
        return losses, norms

    launched, captured = learned(graphs=False), learned(graphs=True)
    # a tied table that is trained gets its two gradients one after the other, not their sum
    room = 1e-3 if kind == "full" else 1e-6
    assert captured[0] == pytest.approx(launched[0], rel=room)
    assert captured[1] == pytest.approx(launched[1], rel=10 * room)
    assert launched[0][-1] < launched[0][0]


def test_a_captured_pass_is_two_launches(learner: Learning) -> None:
    def launches(graphs: bool) -> dict[str, int]:
        one = learner({"train.graphs": graphs})
        for number in range(4):
            one.step(MIXED, number)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            one.step(MIXED, 4)
            torch.cuda.synchronize()
        found = seen.key_averages()
        return {
            kind: sum(event.count for event in found if kind in event.key)
            for kind in ("LaunchKernel", "GraphLaunch")
        }

    launched, captured = launches(graphs=False), launches(graphs=True)
    print(f"launches of a step: {launched}, captured {captured}")  # noqa: T201  # a figure to keep
    assert launched["GraphLaunch"] == 0
    assert captured["GraphLaunch"] == 2 * len(MIXED) // 2
    assert captured["LaunchKernel"] < launched["LaunchKernel"] / 2


def test_shapes_take_each_others_place_in_memory(learner: Learning) -> None:
    one, held = learner({"train.graphs": True, "data.max_length": 512}), []
    for documents in (2, 3):  # in each of 32 rows
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        for number in range(4):
            one.step([pack(documents)] * 32, number)
        torch.cuda.empty_cache()
        held.append(torch.cuda.memory_reserved() - before)
    print(f"bytes held for one number of documents, more for another: {held}")  # noqa: T201  # too
    assert held[1] < held[0] / 4


def test_packed_trials_have_the_same_curves_captured(tiny_folder: Path) -> None:
    """Also when one of them has gone, and in evaluations between."""
    trained = bytes([0, *[1] * 31])  # two documents fill a row
    rows = MemoryRows([Tokens([5 + i, 6, 7, 9 + i] * 8, trained) for i in range(8)])
    changes: dict[str, Change] = {
        "a": {},
        "b": {"adapter.dropout": 0.2},
        "c": {"adapter.rank": 16, "train.global_batch_size": 2},
    }

    def curves(graphs: bool) -> list[float]:
        tree = {
            "name": "packed",
            "model": {"name": str(tiny_folder)},
            "adapter": {"method": "lora", "rank": 8},
            "data": {"train": "unused.jsonl", "eval": "unused.jsonl", "max_length": 64},
            "train": {"max_steps": 30, "learning_rate": 5e-3, "global_batch_size": 4},
        }
        config = validated(
            RunConfig, apply(tree, {"train.compile": True, "train.graphs": graphs}), "test"
        )
        device = torch.device("cuda")
        host = PackedTrainer(config, tiny_folder, Tables(rows, rows), device, Capacity(3, 512))
        for name, own in changes.items():
            host.attach(Trial(name, override(config, own)))
        found: list[float] = []
        for names in (["a", "b", "c"], ["a", "c"]):
            for number in range(6):
                found += [line[key] for line in host.step(names).values() for key in COMPARED]
                if number in (3, 5):
                    found += [line["eval_loss"] for line in host.evaluate(names).values()]
            if "b" in names:
                host.detach("b")
        assert (host._passes._graphs is not None) == graphs
        return found

    launched, captured = curves(graphs=False), curves(graphs=True)
    assert captured == pytest.approx(launched, rel=1e-4)
    assert launched[-1] < launched[0]
