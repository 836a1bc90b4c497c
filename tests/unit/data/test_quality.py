from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from ftray.config.data import DataConfig, LimitsConfig
from ftray.config.run import TrainConfig
from ftray.data.limits import check, quick, violations
from ftray.data.rendering.chat import Tokens
from ftray.data.report.lengths import histogram, spread, usual
from ftray.data.report.quality import BadRow, BadRows, Quality, RowSet, measure
from ftray.data.report.scripts import dominant_script
from ftray.data.report.verdict import judge
from ftray.data.tokens.memory import MemoryRows
from ftray.errors import DataError

TRAIN = TrainConfig(epochs=1, global_batch_size=4)
Pair = tuple[str, str]


def rows_of(pairs: Sequence[Pair], bad: BadRows | None = None) -> RowSet:
    """Rows whose token ids are the code points of a prompt and its answer."""
    tokens = [
        Tokens([ord(c) for c in prompt + answer], bytes(len(prompt)) + b"\x01" * len(answer))
        for prompt, answer in pairs
    ]
    rows = MemoryRows(tokens)
    return RowSet(rows.columns, rows, ["train.jsonl"], bad or BadRows([0]))


def pairs_of(count: int, seed: int = 0, answer: int = 40) -> list[Pair]:
    letters = np.random.default_rng(seed).integers(97, 123, (count, 30 + answer))
    texts = ["".join(map(chr, row)) for row in letters.tolist()]
    return [(text[:30], text[30:]) for text in texts]


def measured(
    pairs: Sequence[Pair],
    evals: Sequence[Pair] | None = None,
    data: DataConfig | None = None,
    bad: BadRows | None = None,
) -> Quality:
    eval_set = None if evals is None else rows_of(evals)
    config = data or DataConfig(train="x")
    return measure(rows_of(pairs, bad), eval_set, config, TRAIN, lambda i: "".join(map(chr, i)))


def test_rows_tokens_and_learned_ones_are_counted_by_source():
    bad = BadRows([2], {"not JSON": 2}, [BadRow("train.jsonl line 3", "not JSON", "")])
    train = measured(pairs_of(10), bad=bad).train
    [source] = train.sources
    assert (source.name, source.rows, source.tokens, source.label_tokens) == (
        *("train.jsonl", 10, 700, 400),
    )
    assert (source.bad_rows, train.bad.count, train.label_share) == (2, 2, pytest.approx(4 / 7))


def test_several_sources_are_told_apart():
    given = rows_of(pairs_of(10))
    columns = replace(given.columns, source=np.repeat([0, 2], [4, 6]).astype(np.int32))
    three = replace(given, columns=columns, sources=["a", "b", "c"], bad=BadRows([0, 5, 1]))
    data = DataConfig(train=["a", "b", "c"])
    found = measure(three, None, data, TRAIN, lambda ids: "").train.sources
    assert [(source.name, source.rows, source.bad_rows) for source in found] == [
        *(("a", 4, 0), ("b", 0, 5), ("c", 6, 1)),
    ]


def test_lengths_are_spread_as_percentiles_say():
    found = spread(np.arange(1, 1001, dtype=np.int32))
    assert found is not None
    assert (found.min, found.median, found.mean, found.max) == (1, 500, 500.5, 1000)
    assert (found.p5, found.p95, found.p99) == (50, 950, 990)
    assert spread(np.empty(0, np.int32)) is None


@pytest.mark.parametrize("high", [1, 7, 39, 40, 110, 2048, 1_000_000])
def test_a_histogram_has_few_bars_of_a_round_width_and_every_row(high: int):
    values = np.random.default_rng(0).integers(0, high + 1, 5000).astype(np.int32)
    bars = histogram(values)
    assert sum(bars.counts) == 5000
    assert len(bars.counts) <= 40
    assert str(bars.width).rstrip("0") in {"1", "2", "5"}


def test_a_few_huge_rows_share_the_last_bar_of_a_histogram():
    values = np.concatenate([np.full(1000, 100), [10**7]]).astype(np.int32)
    bars = histogram(values)
    assert bars.is_open
    assert bars.counts[-1] == 1
    assert bars.width * len(bars.counts) < 200


def test_outliers_do_not_move_what_is_usual():
    lengths = np.random.default_rng(0).lognormal(4.5, 0.4, 10_000).astype(np.int32)
    spoiled = np.concatenate([lengths, np.full(1000, 100_000, np.int32)])
    before, after = usual(lengths), usual(spoiled)
    assert before.most < after.most < 1.5 * before.most
    assert not (lengths > before.most).any()
    assert usual(np.full(9, 50, np.int32)).most > 200


def test_of_two_kinds_of_rows_the_rarer_is_no_outlier():
    lengths = np.concatenate([np.full(700, 5), np.full(300, 120)]).astype(np.int32)
    assert usual(lengths).most > 120
    assert usual(125 - lengths).least < 5


def test_very_long_and_very_short_answers_are_named():
    pairs = pairs_of(300)
    pairs[7] = (pairs[7][0], "x" * 5000)
    pairs[9] = (pairs[9][0], "y")
    unusual = measured(pairs).train.unusual
    assert unusual is not None
    assert (unusual.long, unusual.short) == (1, 1)
    assert [(odd.what, odd.row.place) for odd in unusual.longest + unusual.shortest] == [
        *(("5,000 tokens", "row 8"), ("1 token", "row 10")),
    ]


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello, мир!", "latin"),
        ("Привет, you", "cyrillic"),
        ("東京タワーへ行きました", "han or kana"),
        ("안녕하세요", "hangul"),
        ("12 + 30 = 42", "no letters"),
        ("", "no letters"),
    ],
)
def test_the_dominant_script_is_that_of_most_letters(text: str, script: str):
    assert dominant_script(text) == script


def test_answers_in_a_rare_script_are_named_by_their_line():
    pairs = pairs_of(200)
    pairs[20] = (pairs[20][0], "Извините, посылка уже в пути к вам сейчас")
    unusual = measured(pairs).train.unusual
    assert unusual is not None
    assert [(odd.what, odd.row.place) for odd in unusual.rare] == [("cyrillic", "row 21")]
    assert unusual.scripts == {"latin": 199, "cyrillic": 1}


def test_repeats_are_counted_with_places_and_text():
    pairs = pairs_of(100, answer=90)
    pairs[30] = pairs[60] = pairs[2]
    pairs[50] = (pairs[4][0], pairs[4][1].replace(pairs[4][1][40], "Z", 1))
    repeats = measured(pairs).train.repeats
    assert (repeats.exact, repeats.near) == (2, 1)
    [equal], [alike] = repeats.exact_groups, repeats.near_groups
    assert (equal.rows, equal.places) == (3, ["row 3", "row 31", "row 61"])
    assert (alike.rows, [row.place for row in alike.examples]) == (2, ["row 5", "row 51"])
    assert "Z" in alike.examples[1].text


def test_an_answer_to_many_prompts_is_told_apart_from_equal_rows():
    pairs = pairs_of(60)
    pairs[10:30] = [(prompt, "call us") for prompt, _ in pairs[10:30]]
    pairs[50] = pairs[49]
    repeats = measured(pairs).train.repeats
    [group] = repeats.answers
    assert (group.rows, group.examples[0].text, repeats.exact) == (20, "call us", 1)


def test_eval_rows_in_train_are_found_by_prompt_as_a_whole_and_nearly():
    pairs, evals = pairs_of(100, answer=90), pairs_of(20, seed=1, answer=90)
    evals[3], evals[4] = pairs[8], (pairs[9][0], evals[4][1])
    evals[5] = ("Z" + pairs[10][0][1:], pairs[10][1])
    overlap = measured(pairs, evals).overlap
    assert overlap is not None
    assert (overlap.rows, overlap.prompts, overlap.whole, overlap.near) == (20, 2, 1, 1)
    places = [tuple(row.place for row in pair) for pair in overlap.pairs]
    assert places == [("row 4", "row 9"), ("row 5", "row 10"), ("row 6", "row 11")]


def test_what_is_too_long_is_counted_even_where_it_would_be_refused():
    pairs = pairs_of(20)
    pairs[3] = ("p" * 80, "a" * 10)
    pairs[5] = ("p" * 10, "a" * 200)
    for how, pieces, unlearned in (("truncate", 1, 1), ("error", 1, 1), ("drop", 0, 0)):
        data = DataConfig(train="x", max_length=70, overflow=how)
        found = measured(pairs, data=data).train.overflow
        assert (found.too_long, found.pieces, found.unlearned) == (2, pieces, unlearned)


def test_batches_are_filled_as_training_will_fill_them():
    pairs = pairs_of(40)  # 70 tokens each
    packed = measured(pairs, data=DataConfig(train="x", max_length=140)).train.filling
    alone = measured(pairs, data=DataConfig(train="x", max_length=140, packing=False)).train.filling
    assert packed is not None
    assert alone is not None
    assert (packed.packs, packed.packed, packed.padding, packed.steps) == (20, 1.0, 0.0, 5)
    assert alone.steps == 10


def test_batches_leave_out_the_duplicates_that_training_leaves_out():
    pairs = pairs_of(20) * 2
    data = DataConfig(train="x", duplicates="exact", packing=False)
    filling = measured(pairs, data=data).train.filling
    assert filling is not None
    assert filling.steps == 5


def test_each_broken_limit_is_named_with_what_was_found():
    pairs = pairs_of(100)
    pairs[50:60] = pairs[:10]
    limits = {"duplicates": 0.05, "near_duplicates": 0.2, "too_long": 0.5, "label_share": 0.6}
    data = DataConfig(train="x", max_length=69, limits=limits)
    given = rows_of(pairs)
    shares = quick(given.columns, None, given.rows, 0, data)
    assert violations(shares, data.limits) == [
        "data.limits.duplicates: 10.00% found, at most 5.00% allowed",
        "data.limits.too_long: 100.00% found, at most 50.00% allowed",
        "data.limits.label_share: 57.14% found, at least 60.00% wanted",
    ]
    assert shares == measured(pairs, data=data).shares
    with pytest.raises(DataError, match=r"limits\.duplicates: 10.*\n.*too_long.*\n.*label_share"):
        check(shares, data.limits)


def test_limits_that_are_not_set_or_not_broken_say_nothing():
    given = rows_of(pairs_of(10))
    kept = DataConfig(train="x", limits=LimitsConfig(duplicates=0.0, overlap=0.0, bad_rows=0.1))
    for data in (DataConfig(train="x"), kept):
        check(quick(given.columns, given.columns.at(slice(0)), given.rows, 1, data), data.limits)


def test_the_verdict_says_what_stops_training_and_what_is_worth_a_look():
    bad = BadRows([1], {"not JSON": 1}, [BadRow("train.jsonl line 7", "not JSON", "")])
    pairs = [*pairs_of(50), *pairs_of(1)]
    fails = DataConfig(train="x", max_length=40, overflow="error")
    verdict = judge(measured(pairs, data=fails, bad=bad), fails)
    assert not verdict.is_ok
    assert "train.jsonl line 7: not JSON" in verdict.stops[0]
    assert "data.max_length=40: 51; data.overflow=error" in verdict.stops[1]
    drops = DataConfig(train="x", on_bad_row="drop")
    verdict = judge(measured(pairs, data=drops, bad=bad), drops)
    assert verdict.is_ok
    assert "rows that repeat another: 1; data.duplicates=exact leaves them out" in verdict.notes


def test_a_set_without_rows_is_measured_too():
    found = measured(pairs_of(5), [])
    assert found.eval is not None
    assert (found.eval.rows, found.eval.lengths, found.overlap.prompts) == (0, None, 0)


def test_data_of_which_nothing_is_left_stops_a_run():
    drops = DataConfig(train="x", max_length=8, overflow="drop")
    verdict = judge(measured(pairs_of(50), [], data=drops), drops)
    assert "no training step: with data.max_length=8" in verdict.stops[0]
    assert "no eval row is left" in verdict.stops[1]
