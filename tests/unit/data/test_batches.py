"""Batches: a function of rows, config, seed and step, and labels that are exactly right."""

import random

import numpy as np
import pytest
import torch

from ftray.config.data import DataConfig
from ftray.config.run import TrainConfig
from ftray.data.batching.batches import EpochBatches, eval_packs
from ftray.data.batching.collation import NO_LABEL, collate
from ftray.data.batching.samples import Pack, Sample, Samples
from ftray.data.batching.selection import eval_samples, holdout_samples, training_samples
from ftray.data.rendering.chat import Tokens
from ftray.data.tokens.memory import MemoryRows
from ftray.errors import DataError


def data(**changes: object) -> DataConfig:
    return DataConfig.model_validate({"train": "train.jsonl", "max_length": 32, **changes})


def train(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"epochs": 1, "global_batch_size": 4, **changes})


def row(length: int, first_label: int, start: int = 0) -> Tokens:
    ids = list(range(start, start + length))
    return Tokens(ids, bytes(index >= first_label for index in range(length)))


def batches_of(rows: MemoryRows, config: DataConfig, settings: TrainConfig) -> EpochBatches:
    return EpochBatches(training_samples(rows, config)[0], config, settings)


def keys(packs: list[Pack]) -> list[list[int]]:
    return [[sample.key for sample in pack] for pack in packs]


@pytest.fixture(scope="module")
def rows() -> MemoryRows:
    generator = random.Random(0)
    lengths = [generator.randint(2, 31) for _ in range(103)]
    return MemoryRows([row(length, generator.randint(1, length - 1)) for length in lengths])


@pytest.mark.parametrize("packing", [True, False])
def test_an_epoch_goes_through_each_row_once(packing: bool, rows: MemoryRows):
    batches = batches_of(rows, data(packing=packing), train(epochs=3))
    for epoch in range(3):
        steps = [step for step in range(batches.total_steps) if batches.epoch_of(step) == epoch]
        seen = [row for step in steps for pack in keys(batches.packs(step)) for row in pack]
        assert sorted(seen) == list(range(103))
        assert len(steps) == batches.steps_per_epoch(epoch)


@pytest.mark.parametrize("packing", [True, False])
def test_a_batch_does_not_depend_on_what_was_asked_before(packing: bool, rows: MemoryRows):
    config, settings = data(packing=packing), train(epochs=4, seed=7)
    batches = batches_of(rows, config, settings)
    in_order = [batches.packs(step) for step in range(batches.total_steps)]
    for step in random.Random(1).sample(range(len(in_order)), 12):
        assert batches_of(rows, config, settings).packs(step) == in_order[step]
        assert batches.packs(step) == in_order[step]


def test_epochs_and_seeds_differ(rows: MemoryRows):
    batches = batches_of(rows, data(), train(epochs=2))
    other = batches_of(rows, data(), train(epochs=2, seed=1))
    assert batches.packs(0) != batches.packs(batches.steps_per_epoch(0))
    assert batches.packs(0) != other.packs(0)


def test_the_order_is_the_same_for_ever(rows: MemoryRows):
    """Other numbers here mean that interrupted runs would go on with other rows."""
    batches = batches_of(rows, data(packing=False), train(seed=3))
    assert keys(batches.packs(0)) == [[88], [94], [56], [99]]


def test_only_the_last_batch_of_an_epoch_is_smaller(rows: MemoryRows):
    batches = batches_of(rows, data(packing=False), train(epochs=2))
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
    batches = batches_of(rows, data(packing=False), train(**settings))
    assert batches.total_steps == steps
    assert batches.epoch_of(steps - 1) == (steps - 1) // 26
    assert len(batches.packs(steps - 1)) in (3, 4)


def test_max_length_that_leaves_no_label_is_an_error():
    with pytest.raises(DataError, match=r"no row has a token to learn within data\.max_length=32"):
        batches_of(MemoryRows([row(40, 39)]), data(), train())


def test_labels_are_the_next_token_and_each_row_stands_alone():
    rows = MemoryRows([row(4, 2, start=10), row(3, 1, start=20), row(5, 4, start=30)])
    whole = [Sample(key, 0, int(length), 0) for key, length in enumerate(rows.columns.length)]
    batch = collate(rows, [whole[:2], whole[2:]])
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
    batches = batches_of(rows, data(), train())
    made = [collate(rows, batches.packs(step)) for step in range(batches.total_steps)]
    assert sum(b.label_tokens for b in made) == int(rows.columns.labels.sum())
    assert sum(b.tokens for b in made) == int(rows.columns.length.sum())


def test_eval_packs_are_in_the_order_of_the_rows(rows: MemoryRows):
    samples, _ = eval_samples(rows.columns, rows, data())
    assert keys(eval_packs(samples, data(packing=False))) == [[row] for row in range(103)]
    packed = eval_packs(samples, data())
    assert sorted(row for pack in keys(packed) for row in pack) == list(range(103))
    assert packed == eval_packs(samples, data())


def mixed(sizes: list[int], *settings: dict[str, float]) -> tuple[Samples, DataConfig]:
    parts = [MemoryRows([row(9, 3)] * size, source) for source, size in enumerate(sizes)]
    samples = [training_samples(part, data())[0] for part in parts]
    joined = Samples(*(np.concatenate([getattr(one, name) for one in samples]) for name in NAMES))
    sources = [{"path": f"{n}", **some} for n, some in enumerate(settings)]
    return joined, data(train=sources, packing=False)


NAMES = ("key", "start", "length", "source")


def test_an_epoch_takes_from_each_source_what_the_mixture_says():
    samples, config = mixed([40, 8, 20], {}, {"epochs": 2}, {"samples": 5})
    batches = EpochBatches(samples, config, train(epochs=4))
    for epoch in range(4):
        steps = range(epoch * 16, (epoch + 1) * 16)
        seen = [sample for step in steps for [sample] in batches.packs(step)]
        counts = [[s.key for s in seen if s.source == source] for source in range(3)]
        assert [len(keys) for keys in counts] == [40, 16, 5]
        assert sorted(counts[0]) == list(range(40))
        assert sorted(counts[1]) == sorted([*range(8), *range(8)])
    third = [s.key for step in range(64) for [s] in batches.packs(step) if s.source == 2]
    assert sorted(third) == list(range(20))


def test_rows_set_aside_for_eval_stay_so_in_any_order(rows: MemoryRows):
    config = data(eval_fraction=0.2)
    trained, _ = training_samples(rows, config)
    measured, _ = eval_samples(rows.columns, rows, config)
    assert sorted([*trained.key, *measured.key]) == list(range(103))
    assert 8 < len(measured) < 35
    turned = MemoryRows(
        [Tokens(rows.ids(n).tolist(), rows.trained(n).tobytes()) for n in range(102, -1, -1)]
    )
    again, _ = eval_samples(turned.columns, turned, config)
    assert sorted(102 - again.key) == sorted(measured.key)


def test_rows_of_one_prompt_are_set_aside_together():
    rows = MemoryRows([Tokens([n // 4, 7, 8, n], bytes([0, 0, 0, 1])) for n in range(200)])
    measured, _ = eval_samples(rows.columns, rows, data(eval_fraction=0.3))
    assert all(np.count_nonzero(measured.key // 4 == prompt) in (0, 4) for prompt in range(50))


def test_a_fraction_that_sets_nothing_aside_is_an_error():
    rows = MemoryRows([row(5, 3)] * 5)
    with pytest.raises(DataError, match=r"data\.eval_fraction=1e-09 of 5 rows sets none aside"):
        eval_samples(rows.columns, rows, data(eval_fraction=1e-9))


@pytest.mark.parametrize("evals", [{"eval_fraction": 0.4}, {}])
def test_what_is_held_out_of_train_is_neither_trained_on_nor_measured(
    evals: dict[str, float], rows: MemoryRows
):
    config = data(**evals, holdout={"of": "train", "share": 0.3})
    parts = [training_samples(rows, config)[0], holdout_samples(rows.columns, rows, config)[0]]
    if evals:
        parts.append(eval_samples(rows.columns, rows, config)[0])
        before, _ = eval_samples(rows.columns, rows, data(**evals))
        assert sorted(before.key) == sorted(parts[-1].key)
    assert sorted(key for part in parts for key in part.key) == list(range(103))
    assert 8 < len(parts[1]) < 50


def test_what_is_held_out_of_eval_changes_nothing_of_what_is_trained_on(rows: MemoryRows):
    plain, config = data(eval_fraction=0.4), data(eval_fraction=0.4, holdout={"share": 0.5})
    before, after = (training_samples(rows, one)[0] for one in (plain, config))
    assert list(before.key) == list(after.key)
    measured, held = (eval_samples(rows.columns, rows, one)[0] for one in (plain, config))
    kept, _ = holdout_samples(rows.columns, rows, config)
    assert sorted([*held.key, *kept.key]) == sorted(measured.key)
    assert min(len(held), len(kept)) > 4


def test_an_eval_set_of_its_own_is_shared_out(rows: MemoryRows):
    config = data(eval="eval.jsonl", holdout={"share": 0.5})
    assert len(training_samples(rows, config)[0]) == 103
    held, _ = eval_samples(rows.columns, rows, config)
    kept, _ = holdout_samples(rows.columns, rows, config)
    assert sorted([*held.key, *kept.key]) == list(range(103))


def test_a_hold_out_that_leaves_nothing_is_an_error():
    rows = MemoryRows([row(5, 3)] * 5)
    most, least = ({"eval": "e", "holdout": {"share": share}} for share in (1 - 1e-9, 1e-9))
    with pytest.raises(DataError, match=r"data\.holdout takes all of 5 eval rows"):
        eval_samples(rows.columns, rows, data(**most))
    with pytest.raises(DataError, match=r"data\.holdout of 5 rows holds none out"):
        holdout_samples(rows.columns, rows, data(**least))


@pytest.mark.parametrize(("duplicates", "left"), [("keep", 6), ("exact", 3)])
def test_equal_rows_are_trained_on_once_if_asked(duplicates: str, left: int):
    rows = MemoryRows([row(5, 3), row(6, 3), row(5, 3), row(5, 4), row(5, 3), row(6, 3)])
    samples, _ = training_samples(rows, data(duplicates=duplicates))
    assert len(samples) == left
    assert samples.key[0] == 0
