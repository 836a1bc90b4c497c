"""Batches: a function of rows, config, seed and step, and labels that are exactly right."""

import random

import pytest
import torch

from ftray.config.run import DataConfig, TrainConfig
from ftray.data.batches import NO_LABEL, Batches, Cuts, MemoryRows, collate, cuts, eval_packs
from ftray.data.chat import Tokens
from ftray.errors import DataError


def data(**changes: object) -> DataConfig:
    return DataConfig.model_validate({"train": "train.jsonl", "max_length": 32, **changes})


def train(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"epochs": 1, "global_batch_size": 4, **changes})


def row(length: int, first_label: int, start: int = 0) -> Tokens:
    ids = list(range(start, start + length))
    return Tokens(ids, [index >= first_label for index in range(length)])


@pytest.fixture(scope="module")
def rows() -> MemoryRows:
    generator = random.Random(0)
    lengths = [generator.randint(2, 31) for _ in range(103)]
    return MemoryRows([row(length, generator.randint(1, length - 1)) for length in lengths])


@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_goes_through_each_row_once(packing: bool, rows: MemoryRows):
    batches = Batches(rows, data(packing=packing), train(epochs=3))
    for epoch in range(3):
        steps = [step for step in range(batches.total_steps) if batches.epoch_of(step) == epoch]
        seen = [row for step in steps for pack in batches.packs(step) for row in pack]
        assert sorted(seen) == list(range(103))
        assert len(steps) == batches.steps_per_epoch(epoch)


@pytest.mark.parametrize("packing", [True, False])
def test_a_batch_does_not_depend_on_what_was_asked_before(packing: bool, rows: MemoryRows):
    config, settings = data(packing=packing), train(epochs=4, seed=7)
    batches = Batches(rows, config, settings)
    in_order = [batches.packs(step) for step in range(batches.total_steps)]
    for step in random.Random(1).sample(range(len(in_order)), 12):
        assert Batches(rows, config, settings).packs(step) == in_order[step]
        assert batches.packs(step) == in_order[step]


def test_epochs_and_seeds_differ(rows: MemoryRows):
    batches = Batches(rows, data(), train(epochs=2))
    other = Batches(rows, data(), train(epochs=2, seed=1))
    assert batches.packs(0) != batches.packs(batches.steps_per_epoch(0))
    assert batches.packs(0) != other.packs(0)


def test_the_order_is_the_same_for_ever(rows: MemoryRows):
    """Other numbers here mean that interrupted runs would go on with other rows."""
    assert Batches(rows, data(packing=False), train(seed=3)).packs(0) == [[37], [21], [89], [72]]


def test_only_the_last_batch_of_an_epoch_is_smaller(rows: MemoryRows):
    batches = Batches(rows, data(packing=False), train(epochs=2))
    sizes = [len(batches.packs(step)) for step in range(batches.total_steps)]
    assert sizes == [*[4] * 25, 3] * 2


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"epochs": 2}, 52),
        ({"epochs": None, "max_steps": 60}, 60),
        ({"epochs": 2, "max_steps": 60}, 52),
        ({"epochs": 2, "max_steps": 30}, 30),
    ],
)
def test_epochs_and_max_steps_end_a_run(settings: dict[str, int], steps: int, rows: MemoryRows):
    batches = Batches(rows, data(packing=False), train(**settings))
    assert batches.total_steps == steps
    assert batches.epoch_of(steps - 1) == (steps - 1) // 26
    assert len(batches.packs(steps - 1)) in (3, 4)


def test_rows_are_cut_to_max_length_and_left_out_without_labels():
    rows = MemoryRows([row(10, 9), row(40, 31), row(40, 32), row(32, 31), row(5, 5)])
    batches = Batches(rows, data(), train())
    assert cuts(rows, data()) == Cuts(rows=5, truncated=1, dropped=2)
    packs = [pack for step in range(batches.total_steps) for pack in batches.packs(step)]
    assert sorted(row for pack in packs for row in pack) == [0, 1, 3]
    assert collate(rows, [[1]], 32).input_ids.shape == (1, 32)


def test_max_length_that_leaves_no_label_is_an_error():
    with pytest.raises(DataError, match=r"no row has a token to learn within data\.max_length=32"):
        Batches(MemoryRows([row(40, 39)]), data(), train())


def test_labels_are_the_next_token_and_each_row_stands_alone():
    rows = MemoryRows([row(4, 2, start=10), row(3, 1, start=20), row(5, 4, start=30)])
    batch = collate(rows, [[0, 1], [2]], 32)
    none = NO_LABEL
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 20, 21, 22], [30, 31, 32, 33, 34, 0, 0]]
    assert batch.labels.tolist() == [
        [none, 12, 13, none, 21, 22, none],
        [none, none, none, 34, none, none, none],
    ]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2], [0, 1, 2, 3, 4, 0, 1]]
    assert (batch.tokens, batch.label_tokens) == (12, 5)
    assert batch.input_ids.dtype == batch.labels.dtype == batch.position_ids.dtype == torch.int64


def test_all_labels_of_an_epoch_are_counted_once(rows: MemoryRows):
    batches = Batches(rows, data(), train())
    made = [collate(rows, batches.packs(step), 32) for step in range(batches.total_steps)]
    assert sum(b.label_tokens for b in made) == int((rows.lengths - rows.first_label).sum())
    assert sum(b.tokens for b in made) == int(rows.lengths.sum())


def test_eval_packs_are_in_the_order_of_the_rows(rows: MemoryRows):
    assert eval_packs(rows, data(packing=False)) == [[row] for row in range(103)]
    packed = eval_packs(rows, data())
    assert sorted(row for pack in packed for row in pack) == list(range(103))
    assert packed == eval_packs(rows, data())
