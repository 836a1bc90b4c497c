"""Rows that are longer than `data.max_length`: what each way of dealing with them leaves."""

import numpy as np
import pytest

from ftray.config.data import DataConfig
from ftray.data.batching.collation import NO_LABEL, collate
from ftray.data.batching.samples import Overflow, samples_of
from ftray.data.rendering.chat import Tokens
from ftray.data.tokens.memory import MemoryRows
from ftray.errors import DataError


def data(**changes: object) -> DataConfig:
    return DataConfig.model_validate({"train": "train.jsonl", "max_length": 32, **changes})


def row(length: int, first_label: int, start: int = 0) -> Tokens:
    ids = list(range(start, start + length))
    return Tokens(ids, bytes(index >= first_label for index in range(length)))


@pytest.fixture
def rows() -> MemoryRows:
    return MemoryRows([row(10, 9), row(40, 31), row(40, 32), row(32, 31), row(100, 1)])


def test_truncated_rows_keep_their_start_if_a_label_is_in_it(rows: MemoryRows):
    samples, overflow = samples_of(rows.columns, rows, data())
    assert samples.key.tolist() == [0, 1, 3, 4]
    assert samples.length.tolist() == [10, 32, 32, 32]
    assert overflow == Overflow(rows=5, too_long=3, pieces=2, unlearned=1)


def test_dropped_rows_are_counted(rows: MemoryRows):
    samples, overflow = samples_of(rows.columns, rows, data(overflow="drop"))
    assert samples.key.tolist() == [0, 3]
    assert overflow == Overflow(rows=5, too_long=3, pieces=0, unlearned=0)


def test_split_rows_train_every_label_exactly_once(rows: MemoryRows):
    samples, overflow = samples_of(rows.columns, rows, data(overflow="split"))
    assert samples.key.tolist() == [0, 1, 1, 2, 3, 4, 4, 4, 4]
    assert overflow == Overflow(rows=5, too_long=3, pieces=7, unlearned=0)
    for key in range(5):
        pieces = [samples[n] for n in range(len(samples)) if samples.key[n] == key]
        labels = collate(rows, [[piece] for piece in pieces]).labels.flatten()
        learned = labels[labels != NO_LABEL].tolist()
        assert learned == rows.ids(key)[rows.trained(key)].tolist()


def test_too_long_rows_can_be_an_error_that_names_the_first(rows: MemoryRows):
    message = r"row 2: 40 tokens, more than data\.max_length=32 \(3 such rows in all\)"
    with pytest.raises(DataError, match=message):
        samples_of(rows.columns, rows, data(overflow="error"))


def test_rows_that_fit_are_left_alone():
    rows = MemoryRows([row(5, 2), row(6, 1)])
    for overflow in ("truncate", "split", "drop", "error"):
        samples, found = samples_of(rows.columns, rows, data(overflow=overflow))
        assert samples.length.tolist() == [5, 6]
        assert not np.any(samples.start)
        assert found == Overflow(2, 0, 0, 0)
