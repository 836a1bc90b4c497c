"""Passes that are recorded and replayed, with a recorder that does again what it was given.

Whether CUDA captures them is for tests/gpu to say; here it is what is put where, and in what order.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from ftray.config.base import apply, validated
from ftray.config.run import RunConfig
from ftray.data.batching.collation import collate
from ftray.data.batching.samples import Pack, Sample
from ftray.data.rendering.chat import Tokens
from ftray.data.tokens.memory import MemoryRows
from ftray.errors import ConfigError, TrainError
from ftray.model.attention import DOCUMENTS, bounds_of, set_attention
from ftray.model.shape import BUILTIN_SHAPE
from ftray.runs import Run
from ftray.train import capture, checkpoint
from ftray.train.capture import Shape, is_captured
from ftray.train.checkpoint import Progress
from ftray.train.choice import Choice, settle
from ftray.train.memory import GIB, Worker
from ftray.train.parallel import Place
from ftray.train.step import StepResult, micro_batch, train_step
from ftray.train.trainee import with_graphs
from tests.unit.train.recording import Again, Refusing, Taped

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

PLACE = Place(0, 1, torch.device("cpu"))
ROWS = MemoryRows([Tokens([5 + i, 40, 41 + i, 42, 9], bytes([0, 1, 1, 1, 1])) for i in range(6)])
LORA = {"adapter": {"method": "lora", "rank": 4, "dropout": 0.2}}
FULL = {"adapter": {"method": "full"}, "train.learning_rate": 1e-3}

Learning = Callable[[dict[str, Any]], Any]


def pack(documents: int) -> Pack:
    return [Sample(key % 6, 0, 5, 0) for key in range(documents)]


# one document in each row; several, and then more than sixteen; a micro-batch of a single row
MIXED = [[pack(1), pack(1)], [pack(2), pack(7)], [pack(12), pack(12)], [pack(3)]]


def step(learner: Any, batches: list[list[Pack]], number: int) -> StepResult:
    result = learned(learner, batches, number)
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    return result


def learned(learner: Any, batches: list[list[Pack]], number: int) -> StepResult:
    packs = [one for batch in batches for one in batch]
    ends = [sum(map(len, batches[: i + 1])) for i in range(len(batches))]
    spans = [range(end - len(batch), end) for end, batch in zip(ends, batches, strict=True)]
    work = [micro_batch(ROWS, packs, list(span)) for span in spans]
    return train_step(learner.trainee, work, PLACE, learner.config.train, number)


@pytest.fixture
def pair(learner: Learning) -> Callable[[dict[str, Any]], tuple[Any, Any, Again]]:
    """Two learners of documents in rows of one length; the second one's passes are recorded."""

    def make(changes: dict[str, Any]) -> tuple[Any, Any, Again]:
        both = []
        for _ in range(2):
            one = learner(changes)
            set_attention(one.trainee.attached.model, DOCUMENTS)
            both.append(replace(one, trainee=replace(one.trainee, row_length=64)))
        plain, graphed = both
        recorder = Again()
        return plain, replace(graphed, trainee=with_graphs(graphed.trainee, recorder)), recorder

    return make


Pair = Callable[[dict[str, Any]], tuple[Any, Any, Again]]


@pytest.mark.parametrize("changes", [LORA, {"adapter": {"method": "lora", "rank": 4}}])
def test_adapters_take_the_same_steps_with_graphs(changes: dict[str, Any], pair: Pair) -> None:
    plain, graphed, recorder = pair(changes)
    for number in range(4):
        assert step(graphed, MIXED, number) == step(plain, MIXED, number)
    expected = plain.weights()
    assert all(torch.equal(values, expected[name]) for name, values in graphed.weights().items())
    assert recorder.replayed


def test_a_whole_model_takes_the_same_steps_with_graphs(pair: Pair) -> None:
    # a tied table gets its two gradients one after the other, not their sum
    plain, graphed, _ = pair(FULL)
    for number in range(4):
        found, expected = step(graphed, MIXED, number), step(plain, MIXED, number)
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)
        assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of itself in many ways
def test_compiled_layers_take_the_same_steps_with_graphs(pair: Pair) -> None:
    plain, graphed, recorder = pair({**LORA, "train.compile": True})
    whole = [[pack(1), pack(1)]]  # without a GPU documents are taken one by one, in many pieces
    for number in range(4):
        assert step(graphed, whole, number) == step(plain, whole, number)
    assert recorder.replayed


@pytest.mark.parametrize("changes", [LORA, FULL])
def test_what_is_recorded_is_all_that_a_step_needs_and_waits_for_nothing(
    changes: dict[str, Any], pair: Pair
) -> None:
    """Python is not run again: micro-batches of two shapes, each with dropout of its own."""
    plain, graphed, _ = pair(changes)
    recorder = Taped()
    graphed = replace(graphed, trainee=with_graphs(graphed.trainee, recorder))
    alternating = [[pack(1), pack(1)], [pack(1)]]
    for number in range(5):
        found, expected = step(graphed, alternating, number), step(plain, alternating, number)
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)
        assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    assert recorder.replayed == [0, 1, 2, 3] * 3


def test_a_micro_batch_without_labels_adds_nothing(pair: Pair) -> None:
    plain, graphed, _ = pair(LORA)
    for number in range(4):
        results = []
        for one in (plain, graphed):
            work = [micro_batch(ROWS, [pack(3)], some) for some in ([0], [])]
            results.append(train_step(one.trainee, work, PLACE, one.config.train, number))
            one.optimizer.zero_grad()
        assert results[0] == results[1]


def test_each_shape_is_recorded_at_its_third_pass_and_replayed_forward_and_back(pair: Pair) -> None:
    _, graphed, recorder = pair(LORA)
    several = [[pack(2), pack(7)]]
    for number in range(2):
        step(graphed, several, number)
    assert (recorder.recorded, recorder.replayed) == (0, [])
    for number in (2, 3):
        step(graphed, [*several, [pack(4), pack(9)]], number)  # there is room for as many
    assert (recorder.recorded, recorder.replayed) == (2, [0, 1] * 4)
    step(graphed, [[pack(12), pack(12)]], 4)
    assert (recorder.recorded, len(recorder.replayed)) == (2, 8)


def test_rare_shapes_are_not_recorded(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "_MOST", 1)
    plain, graphed, recorder = pair(LORA)
    for number in range(4):
        assert step(graphed, MIXED, number) == step(plain, MIXED, number)
    assert recorder.recorded == 2


@pytest.mark.parametrize(
    ("rows", "documents"), [([1, 1], None), ([1, 2], 16), ([8, 8], 16), ([8, 9], 32), ([12], 16)]
)
def test_documents_are_rounded_up_so_that_few_shapes_come(
    rows: list[int], documents: int | None
) -> None:
    batch = collate(ROWS, [pack(number) for number in rows])
    longest = 5 * max(rows)
    padding = sum(number * 5 < longest for number in rows)
    found = Shape.of(batch, bounds_of(batch.position_ids))
    if documents is not None and sum(rows) + padding > documents:
        documents *= 2
    assert found == Shape(len(rows), longest, documents)


def test_a_gradient_stays_where_graphs_add_to_it_whatever_becomes_of_it(
    pair: Pair, tmp_path: Path
) -> None:
    plain, graphed, _ = pair(LORA)
    progress = Progress(3, {"loss": 1.0}, is_best=False, micro_batch_size=2)
    places: list[list[int]] = []
    for name, one in (("plain", plain), ("graphed", graphed)):
        run = Run(str(tmp_path), name)
        for number in range(5):
            step(one, MIXED, number)
            if number == 2:
                checkpoint.save(run, one.trainable, one.optimizer, progress, PLACE, 1)
        learned(one, MIXED, 5)
        for values in one.trainable.values():
            values.grad.fill_(torch.nan)
        one.optimizer.zero_grad()
        record = checkpoint.newest(run, PLACE, 1)  # a rewind
        assert record is not None
        checkpoint.load(run, record, one.trainable, one.optimizer)
    for number in (5, 6):
        assert step(graphed, MIXED, number) == step(plain, MIXED, number)
        graphed.trainee.graphs.begin()
        places.append([values.grad.data_ptr() for values in graphed.trainable.values()])
    assert places[0] == places[1]


def test_a_recording_that_fails_says_which_and_what_to_do(pair: Pair) -> None:
    _, graphed, _ = pair(LORA)
    failing = replace(graphed, trainee=with_graphs(graphed.trainee, Refusing()))
    several = [[pack(2), pack(7)]]
    for number in range(2):
        step(failing, several, number)
    with pytest.raises(TrainError, match="2 × 64 tokens, up to 16 documents cannot be") as error:
        step(failing, several, 2)
    assert error.value.hint == "set train.graphs=false"


TREE = {
    "name": "a",
    "data": {"train": "x.jsonl", "max_length": 512},
    "train": {"max_steps": 100, "global_batch_size": 16},
}
H100 = Worker("gpu", 1, 76 * GIB, "a test")


def config(**changes: Any) -> RunConfig:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return validated(RunConfig, apply(TREE, dotted), "test")


def chosen(worker: Worker = H100, **changes: Any) -> Choice:
    return settle(config(**changes), BUILTIN_SHAPE, worker)


def test_a_small_model_on_short_rows_is_captured_and_what_graphs_hold_is_counted() -> None:
    found, without = chosen(), chosen(train__graphs=False)
    assert (found.graphs, without.graphs) == (True, False)
    assert "; graphs: 30 layers' launches take about" in found.reason
    assert "; no graphs, as the run says" in without.reason
    assert found.memory is not None
    assert without.memory is not None
    assert found.memory.graphs == found.memory.activations
    assert found.memory.peak == without.memory.peak + found.memory.graphs
    assert found.memory.allocated == without.memory.allocated
    whole = chosen(adapter={"method": "full"}, train__graphs=True).memory
    assert whole is not None
    assert whole.graphs == whole.activations + whole.gradients


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data__max_length": 8192, "train__micro_batch_size": 16}, "ms a micro-batch, products"),
        ({"data__packing": False}, "data.packing=true"),
        ({"scaling__strategy": "fsdp"}, "sharded weights"),
        ({"adapter": {"method": "full"}, "scaling__num_workers": 4}, "sharded weights"),
        ({"train__objective": "memory"}, "train.objective=memory"),
        ({"train__compile": False}, "train.compile=false"),
        ({"train__max_steps": 10}, "not compiled"),
        ({"model__attention": "eager"}, "makes masks"),
    ],
)
def test_nothing_is_captured_where_it_cannot_be_or_brings_nothing(
    changes: dict[str, Any], reason: str
) -> None:
    found = chosen(**changes)
    assert found.graphs is False
    assert "; no graphs: " in found.reason
    assert reason in found.reason.partition("; no graphs: ")[2]


def test_graphs_that_do_not_fit_are_left_out() -> None:
    needed = chosen(train__graphs=False, train__micro_batch_size=16).memory
    assert needed is not None
    found = chosen(replace(H100, memory=needed.peak), train__micro_batch_size=16)
    assert found.graphs is False
    assert "; no graphs, which would take it to" in found.reason


def test_to_ask_for_graphs_where_they_cannot_be_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="graphs=true: sharded weights"):
        config(train__graphs=True, scaling__strategy="fsdp")


def model(device: str = "cuda", **changed: Any) -> Any:
    """What is asked of a model."""
    told = LlamaConfig(**changed)
    told._attn_implementation = DOCUMENTS
    return SimpleNamespace(device=torch.device(device), config=told)


def test_a_worker_captures_what_the_plan_would_have_captured_if_it_can() -> None:
    auto = config()
    assert is_captured(auto, model(), compiled=True, pays=True)[0]
    assert is_captured(auto, model(), compiled=True, pays=False)[0] is False
    assert is_captured(config(train__graphs=False), model(), compiled=True, pays=True)[0] is False
    assert is_captured(auto, model("cpu"), compiled=True, pays=True) == (False, "no GPU")
    assert is_captured(auto, model(), compiled=False, pays=True)[1] == "layers are not compiled"
    longest = model(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    assert "longest row" in is_captured(auto, longest, compiled=True, pays=True)[1]
    masked = model()
    masked.config._attn_implementation = "sdpa"
    assert "masks" in is_captured(auto, masked, compiled=True, pays=True)[1]


def test_a_worker_that_cannot_capture_what_it_was_told_to_says_why() -> None:
    asked = config(train__graphs=True)
    assert is_captured(asked, model(), compiled=True, pays=False)[0]
    with pytest.raises(TrainError, match="graphs=true: no GPU"):
        is_captured(asked, model("cpu"), compiled=True, pays=True)
