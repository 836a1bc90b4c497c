from collections.abc import Sequence

import numpy as np
import pytest

from ftray.data.duplicates import (
    LIKENESS,
    earlier_like,
    exact,
    first_of_group,
    near,
    near_overlap,
    origins,
    overlap,
    signatures_of,
    whole_overlap,
)
from ftray.data.rendering.chat import Tokens
from ftray.data.signatures import (
    NGRAM,
    PERMUTATIONS,
    Block,
    blocks,
    common_ngrams,
    hash_from,
    sign,
)
from ftray.data.tokens.columns import Columns
from ftray.data.tokens.memory import MemoryRows

NOTHING = np.empty(0, np.uint64)


def rows_of(rows: Sequence[Sequence[int]], first_label: int = 2) -> MemoryRows:
    def tokens(ids: Sequence[int]) -> Tokens:
        prompt = min(first_label, len(ids))
        return Tokens(list(ids), bytes(prompt) + b"\x01" * (len(ids) - prompt))

    return MemoryRows([tokens(ids) for ids in rows])


def random_rows(count: int, length: int, seed: int = 0) -> list[list[int]]:
    return np.random.default_rng(seed).integers(0, 30_000, (count, length)).tolist()


def changed(row: list[int], *places: int) -> list[int]:
    return [token + 1 if place in places else token for place, token in enumerate(row)]


def likeness(left: list[int], right: list[int]) -> float:
    first, second = (
        {tuple(row[i : i + NGRAM]) for i in range(max(1, len(row) - NGRAM + 1))}
        for row in (left, right)
    )
    return len(first & second) / len(first | second)


def test_of_equal_rows_the_first_stays():
    a, b = random_rows(2, 8)
    assert exact(rows_of([a, b, a, a, b]).columns).tolist() == [False, False, True, True, True]


def test_rows_with_other_labels_are_no_exact_duplicates():
    [row] = random_rows(1, 8)
    rows = MemoryRows([Tokens(row, bytes([0, *[1] * 7])), Tokens(row, bytes([0, 0, *[1] * 6]))])
    assert exact(rows.columns).tolist() == [False, False]


def test_near_finds_rows_that_resemble_an_earlier_one_and_no_others():
    rows = random_rows(200, 60)
    rows[150] = changed(rows[20], 30)
    rows[170] = rows[40]
    rows[190] = changed(rows[60], 5, 15, 25, 35, 45, 55)  # likeness 0.3
    table = rows_of(rows)
    assert np.flatnonzero(near(table.columns, table)).tolist() == [150, 170]


def test_signatures_estimate_likeness_without_bias():
    originals = random_rows(400, 100)
    copies = [changed(row, 50, 80) for row in originals]
    signatures = [
        sign(next(blocks(table.columns, table)), NOTHING)
        for table in (rows_of(originals), rows_of(copies))
    ]
    found = (signatures[0] == signatures[1]).mean(axis=1)
    wanted = likeness(originals[0], copies[0])
    assert found.mean() == pytest.approx(wanted, abs=0.01)
    assert found.std() < 1.2 * (wanted * (1 - wanted) / PERMUTATIONS) ** 0.5


def test_pairs_beyond_the_threshold_are_found_and_pairs_below_are_not():
    originals = random_rows(500, 200)
    alike = [changed(row, 50, 120) for row in originals]  # 0.903
    unlike = [changed(row, 20, 50, 80, 110, 140, 170) for row in originals]  # 0.73
    table = rows_of([*originals, *alike, *unlike])
    found = near(table.columns, table)
    assert likeness(originals[0], alike[0]) > LIKENESS > likeness(originals[0], unlike[0])
    assert not found[:500].any()
    assert found[500:1000].mean() > 0.97
    assert found[1000:].mean() < 0.1


def test_a_shared_system_prompt_makes_no_rows_alike():
    system = random_rows(1, 400, seed=1)[0]
    rows = [system + row for row in random_rows(100, 30)]
    rows[70] = rows[3]
    table = rows_of(rows, first_label=410)
    assert np.flatnonzero(near(table.columns, table)).tolist() == [70]


def test_rows_of_nothing_but_common_text_are_still_told_apart():
    common = random_rows(20, 12, seed=2)
    table = rows_of([row for row in common for _ in range(20)])
    assert near(table.columns, table).sum() == 20 * 19
    assert not near(table.columns.at(slice(0, None, 20)), table).any()


def test_rows_shorter_than_an_ngram_are_compared_as_a_whole():
    table = rows_of([[1, 2, 3], [1, 2, 4], [1, 2, 3], [5], [5]], first_label=1)
    assert near(table.columns, table).tolist() == [False, False, True, False, True]


def test_pieces_of_one_conversation_are_not_its_duplicates():
    rows = random_rows(3, 60)
    table = MemoryRows([Tokens(row, bytes(10) + b"\x01" * (len(row) - 10)) for row in rows])
    tables = table.columns
    longer = MemoryRows([Tokens(rows[0] + [7], bytes(60) + b"\x01")])
    both = Columns(
        **{
            name: np.concatenate([column[:1], vars(longer.columns)[name]])
            for name, column in vars(tables).items()
            if name != "prompt_digest"
        },
        prompt_digest=np.repeat(tables.prompt_digest[:1], 2),
    )
    signatures = np.concatenate(
        [signatures_of(one.columns.at(slice(1)), one, NOTHING) for one in (table, longer)]
    )
    assert origins(both).tolist() == [0, 0]
    assert earlier_like(signatures, origins(both)).tolist() == [-1, -1]
    assert earlier_like(signatures, np.arange(2)).tolist() == [-1, 0]


def test_groups_are_followed_to_their_first_row():
    assert first_of_group(np.array([-1, 0, -1, 1, 3, 2])).tolist() == [0, 0, 2, 0, 0, 2]


def test_the_result_is_the_same_in_blocks_of_any_size():
    table = rows_of(random_rows(50, 40))
    whole = signatures_of(table.columns, table, NOTHING)
    parts = [signatures_of(table.columns.at(slice(i, i + 1)), table, NOTHING) for i in range(50)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_no_rows_have_no_duplicates():
    table = rows_of([])
    assert len(common_ngrams(table.columns, table)) == 0
    assert (len(exact(table.columns)), len(near(table.columns, table))) == (0, 0)


def test_overlap_is_by_prompt_and_as_a_whole():
    a, b, c = random_rows(3, 40)
    train = rows_of([a, b], first_label=20)
    evals = rows_of([a, b[:20] + c[20:], c], first_label=20)
    assert overlap(train.columns, evals.columns).tolist() == [True, True, False]
    assert whole_overlap(train.columns, evals.columns).tolist() == [True, False, False]


def test_near_overlap_names_the_training_row():
    rows = random_rows(300, 60)
    train, evals = rows_of(rows), rows_of([changed(rows[123], 30), *random_rows(5, 60, seed=9)])
    signed = [signatures_of(table.columns, table, NOTHING) for table in (train, evals)]
    assert near_overlap(*signed).tolist() == [123, -1, -1, -1, -1, -1]
    assert near_overlap(signed[0][:0], signed[1]).tolist() == [-1] * 6


def test_answers_are_hashed_wherever_they_stand():
    ids = np.array([1, 2, 3, 9, 2, 3, 2, 3, 3, 2], np.int32)
    hashes = hash_from(Block(ids, np.array([0, 3, 6, 8, 10])), np.array([1, 1, 0, 2]))
    assert hashes[0] == hashes[1] == hashes[2]
    assert hashes[3] == 0
