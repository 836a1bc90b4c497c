"""Packing: nothing lost, nothing too long, little empty."""

import random
import time

import pytest

from ftray.data.batching.packing import pack

MAX = 2048


def lengths_like_gsm8k(rows: int) -> list[int]:
    generator = random.Random(0)
    return [min(MAX, max(30, int(generator.lognormvariate(5.0, 0.4)))) for _ in range(rows)]


def test_every_row_is_in_one_pack_and_no_pack_is_too_long():
    generator = random.Random(1)
    lengths = [generator.randint(1, 50) for _ in range(500)]
    order = generator.sample(range(500), 400)
    packs = pack(lengths, 50, order)
    assert sorted(row for rows in packs for row in rows) == sorted(order)
    assert max(sum(lengths[row] for row in rows) for rows in packs) <= 50


def test_a_row_goes_where_it_fits_best():
    assert pack([6, 5, 4, 5], 10, [0, 1, 2, 3]) == [[0, 2], [1, 3]]
    assert pack([10, 1, 9], 10, [2, 0, 1]) == [[2, 1], [0]]
    assert pack([], 10, []) == []


@pytest.mark.parametrize("order", ["shuffled", "longest first"])
def test_packs_are_at_least_97_percent_full(order: str):
    lengths = lengths_like_gsm8k(7473)
    rows = list(range(len(lengths)))
    if order == "shuffled":
        random.Random(2).shuffle(rows)
    else:
        rows.sort(key=lambda row: -lengths[row])
    packs = pack(lengths, MAX, rows)
    assert sum(lengths) / (len(packs) * MAX) > 0.97


def test_a_hundred_thousand_rows_take_a_fraction_of_a_second():
    lengths = lengths_like_gsm8k(10_000) * 10
    start = time.process_time()
    pack(lengths, MAX, range(len(lengths)))
    assert time.process_time() - start < 3  # about 0.2 s on a quiet machine
