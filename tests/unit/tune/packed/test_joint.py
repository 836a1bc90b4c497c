"""Rows of several trials in joint micro-batches: no time lost, no bound broken."""

import pytest

from ftray.data.batching.samples import Sample
from ftray.tune.packed.joint import Row, joined


def rows(lengths: list[int]) -> list[Row]:
    return [Row.of(0, [Sample(key, 0, n, 0)], 0) for key, n in enumerate(lengths)]


def lengths(batches: list[list[Row]]) -> list[list[int]]:
    return [[row.length for row in batch] for batch in batches]


def test_every_row_comes_once_and_no_batch_is_above_the_bound():
    given = rows([(7 * n) % 41 + 3 for n in range(100)])
    batches = joined(given, most_tokens=128, overhead=16)
    assert sorted(row.pack[0].key for batch in batches for row in batch) == list(range(100))
    assert all(len(batch) * max(row.length for row in batch) <= 128 for batch in batches)


def test_rows_of_like_length_come_together_where_padding_costs_more_than_a_batch():
    assert lengths(joined(rows([8, 100, 9, 99]), 10_000, overhead=10)) == [[100, 99], [9, 8]]
    assert lengths(joined(rows([8, 100, 9, 99]), 10_000, overhead=500)) == [[100, 99, 9, 8]]


def test_equal_rows_stay_in_the_order_in_which_trials_take_turns():
    [batch] = joined(rows([5, 5, 5]), 100, overhead=0)
    assert [row.pack[0].key for row in batch] == [0, 1, 2]


@pytest.mark.parametrize("most", [1, 10])
def test_a_row_above_the_bound_comes_alone(most):
    assert lengths(joined(rows([50, 4]), most, overhead=1)) == [[50], [4]]


def test_of_no_rows_there_is_no_batch():
    assert joined([], 100, overhead=1) == []
