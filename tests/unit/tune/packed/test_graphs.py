"""Joint micro-batches that are recorded and replayed, where no GPU captures them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ftray.config.run import RunConfig
from ftray.data.rendering.chat import Tokens
from ftray.data.tokens.memory import MemoryRows
from ftray.errors import TrainError
from ftray.model.attention import DOCUMENTS, set_attention
from ftray.model.shape import BUILTIN_SHAPE, ModelShape, read_shape
from ftray.tune.packed.graphs import JointGraphs, cuda_graphs
from ftray.tune.packed.intake import Tables
from ftray.tune.packed.trainer import PackedTrainer
from ftray.tune.packed.trial import Trial
from tests.unit.train.recording import Again, Refusing, Taped
from tests.unit.train.test_plan import LLAMA_8B

Change = dict[str, Any]
KINDS: dict[str, Change] = {
    "plain": {},
    "other rank": {"adapter.rank": 16, "train.learning_rate": 3e-3},
    "few targets": {"adapter.target": ["q_proj", "v_proj"], "train.global_batch_size": 2},
    "dropout": {"adapter.dropout": 0.3, "train.seed": 7},
    "shorter": {"data.max_length": 48, "train.global_batch_size": 3},
}


class Recorders:
    """Makes recorders, and keeps those that it has made."""

    def __init__(self, kind: type[Again] = Again) -> None:
        self.kind, self.made = kind, list[Again]()

    def __call__(self) -> Again:
        self.made.append(self.kind())
        return self.made[-1]


@pytest.fixture
def replaying(
    packed: Callable[..., PackedTrainer], config_of: Callable[[Change], RunConfig]
) -> Callable[..., PackedTrainer]:
    """Build a host's trainer that attends to documents, with recordings if it has a recorder."""

    def make(recorders: Recorders | None, changes: Change | None = None) -> PackedTrainer:
        trainer = packed()
        model, bank = trainer._passes._model, trainer._bank
        set_attention(model, DOCUMENTS)
        if recorders is not None:
            config = config_of({"train.graphs": True, **(changes or {})})
            trainer._passes._graphs = JointGraphs(model, bank, config, BUILTIN_SHAPE, recorders)
        return trainer

    return make


Replaying = Callable[..., PackedTrainer]
TrialOf = Callable[[str, Change], Trial]


def curves(trainer: PackedTrainer, trial_of: TrialOf, kinds: list[str]) -> dict[str, list[float]]:
    """Trials come in one after the other, and the first one leaves before the others end."""
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for count in range(1, len(kinds) + 1):
        trainer.attach(trial_of(kinds[count - 1], KINDS[kinds[count - 1]]))
        stepped(trainer, kinds[:count], found, 1)
    stepped(trainer, kinds, found, 4)
    trainer.evaluate(kinds[1:])
    trainer.detach(kinds[0])
    stepped(trainer, kinds[1:], found, 3)
    return found


def stepped(
    trainer: PackedTrainer, names: list[str], found: dict[str, list[float]], times: int
) -> None:
    for _ in range(times):
        for name, line in trainer.step(names).items():
            assert isinstance(line, dict), line
            found[name] += [float(line["loss"]), float(line["grad_norm"])]  # type: ignore[arg-type]


def test_trials_have_the_same_curves_replayed(replaying: Replaying, trial_of: TrialOf) -> None:
    """Also when others come and go, of other ranks and targets, and with dropout."""
    recorders = Recorders()
    expected = curves(replaying(None), trial_of, list(KINDS))
    found = curves(replaying(recorders), trial_of, list(KINDS))
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-5), name
    replayed = [bool(recorder.replayed) for recorder in recorders.made]
    assert replayed == [False] * 4 + [True, True]


def test_what_is_recorded_of_trials_is_all_that_a_step_needs(
    replaying: Replaying, trial_of: TrialOf
) -> None:
    """Python is not run again: joint micro-batches in which trials take turns in several ways."""
    kinds = ["plain", "other rank", "dropout"]  # of four rows each; by eights
    one = Tokens(list(range(5, 45)), bytes([0, *[1] * 39]))  # a CPU takes documents in Python
    rows, curves = MemoryRows([one, Tokens(one.ids[::-1], one.trained)] * 12), []
    for recorders in (None, Recorders(Taped)):
        trainer = replaying(recorders)
        trainer._tables = Tables(rows, rows)
        found: dict[str, list[float]] = {name: [] for name in kinds}
        present: list[str] = []
        for name in kinds:
            trainer.attach(trial_of(name, KINDS[name] | {"data.packing": False}))
            present.append(name)
            stepped(trainer, present, found, 4)
            trainer.evaluate(present)
        trainer.detach(present.pop(0))
        stepped(trainer, present, found, 4)
        curves.append(found)
    assert recorders is not None
    assert [one.recorded > 1 for one in recorders.made] == [True] * 4
    for name in kinds:
        assert curves[1][name] == pytest.approx(curves[0][name], rel=1e-5), name


class Full(Again):
    """There is memory for one recording, and none for the second."""

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        if self.recorded:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(work)


@pytest.mark.parametrize("recorder", [Full, Refusing])
def test_trials_learn_on_where_there_is_no_memory_to_record_or_it_fails(
    recorder: type[Again], replaying: Replaying, trial_of: TrialOf
) -> None:
    """Nothing is held against their own memory: micro-batches stay as large as they were."""
    curves = []
    for recorders in (None, Recorders(recorder)):
        trainer = replaying(recorders, {"train.graphs": "auto"})
        trainer.attach(trial_of("plain", {}))
        found: dict[str, list[float]] = {"plain": []}
        stepped(trainer, ["plain"], found, 5)
        curves.append(found["plain"])
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    assert trainer._passes.most_tokens == 512
    assert trainer._passes._graphs is None


def test_a_run_that_insists_on_graphs_says_that_they_cannot_be_recorded(
    replaying: Replaying, trial_of: TrialOf
) -> None:
    trainer = replaying(Recorders(Refusing))
    trainer.attach(trial_of("plain", {}))
    for _ in range(2):
        trainer.step(["plain"])
    with pytest.raises(TrainError, match="cannot be captured as CUDA graphs: operation not"):
        trainer.step(["plain"])


@pytest.mark.parametrize(
    ("lengths", "shape", "changes", "expected"),
    [
        ([500] * 8, BUILTIN_SHAPE, {}, 512),
        ([500] * 256, BUILTIN_SHAPE, {}, 512),  # whose launches are as many micro-batches'
        ([500] * 2, LLAMA_8B, {}, 512),
        ([500] * 16, LLAMA_8B, {}, None),
        ([500] * 16, LLAMA_8B, {"train.graphs": True}, 512),
        ([5] * 64, BUILTIN_SHAPE, {}, 512),
        ([5] * 3200, BUILTIN_SHAPE, {}, None),  # a micro-batch, and with padding a hundred
        ([500, 600], BUILTIN_SHAPE, {"train.graphs": True}, None),
        ([], BUILTIN_SHAPE, {"train.graphs": True}, None),
    ],
)
def test_rows_are_padded_and_replayed_where_launches_outlast_products(
    lengths: list[int],
    shape: ModelShape,
    changes: Change,
    expected: int | None,
    replaying: Replaying,
    config_of: Callable[[Change], RunConfig],
) -> None:
    trainer = replaying(None)
    config = config_of({"data.max_length": 512, **changes})
    model = trainer._passes._model
    graphs = JointGraphs(model, trainer._bank, config, shape, Again)
    assert graphs.row_length(lengths, 16384) == expected


def test_of_an_unknown_shape_nothing_is_replayed_unless_told(
    replaying: Replaying, config_of: Callable[[Change], RunConfig]
) -> None:
    trainer = replaying(None)
    for wanted, expected in (("auto", None), (True, 64)):
        config = config_of({"train.graphs": wanted})
        graphs = JointGraphs(trainer._passes._model, trainer._bank, config, None, Again)
        assert graphs.row_length([40], 512) == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "no GPU"),
        ({"data.packing": False}, "rows of many lengths need data.packing=true"),
        ({"train.activation_checkpointing": "layer"}, "layers are computed twice"),
    ],
)
def test_a_search_says_why_it_captures_nothing(
    changes: Change,
    reason: str,
    replaying: Replaying,
    config_of: Callable[[Change], RunConfig],
    tiny_folder: Path,
) -> None:
    trainer = replaying(None)
    model, shape = trainer._passes._model, read_shape(tiny_folder)

    def chosen(config: RunConfig, of: ModelShape | None) -> tuple[JointGraphs | None, str]:
        return cuda_graphs(config, model, trainer._bank, of, compiled=True)

    assert chosen(config_of(changes), shape) == (None, reason)
    if "data.packing" not in changes:  # which the config itself refuses
        with pytest.raises(TrainError, match=reason) as error:
            chosen(config_of({**changes, "train.graphs": True}), shape)
        assert error.value.hint.startswith("set train.graphs=auto")
