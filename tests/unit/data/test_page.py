"""The report page: what it says, and that nothing in the data can change what it is."""

import re
from html.parser import HTMLParser

import pytest

from ftray.config.data import DataConfig
from ftray.config.run import TrainConfig
from ftray.data.rendering.chat import Tokens
from ftray.data.report.charts import bar_chart, round_down
from ftray.data.report.excerpts import Excerpt
from ftray.data.report.lengths import Histogram
from ftray.data.report.markup import short, side_by_side, text
from ftray.data.report.page import page
from ftray.data.report.quality import BadRow, BadRows, RowSet, measure
from ftray.data.report.verdict import judge
from ftray.data.tokens.memory import MemoryRows

VOID = {"meta", "link", "br", "img"}
HOSTILE = "<script>alert(1)</script>'\"><img src=x onerror=y>\u202e\x00&amp;"


class Reader(HTMLParser):
    """Collects tags and text, and checks that every tag is closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: set[str] = set()
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


Pairs = list[tuple[str, str]]


@pytest.fixture
def pairs() -> Pairs:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    return [
        (f"what is {words[n % 10]} and {words[n // 10]}?", f"it is {n % 10 + n // 10} {n * n}")
        for n in range(100)
    ]


def rows_of(pairs: Pairs, source: str, bad: BadRows) -> RowSet:
    tokens = [
        Tokens([ord(c) for c in prompt + answer], bytes(len(prompt)) + b"\x01" * len(answer))
        for prompt, answer in pairs
    ]
    rows = MemoryRows(tokens)
    return RowSet(rows.columns, rows, [source], bad)


def decoded(ids: list[int]) -> str:
    return "".join(map(chr, ids))


def made(
    pairs: Pairs, evals: Pairs | None = None, source: str = "train.jsonl", **settings: object
) -> str:
    data = DataConfig(train="x", **settings)
    bad = BadRows([3], {HOSTILE: 3}, [BadRow(HOSTILE, "not JSON", "put it right")])
    eval_set = None if evals is None else rows_of(evals, "eval.jsonl", BadRows([0]))
    train = TrainConfig(epochs=1)
    quality = measure(rows_of(pairs, source, bad), eval_set, data, train, decoded)
    return page("my run", quality, judge(quality, data))


def test_the_page_tells_verdict_numbers_and_places(pairs: Pairs):
    html = made([*pairs, pairs[0]], pairs[:3], limits={"duplicates": 0.0})
    said = " ".join(Reader(html).texts)
    assert "ftray train would refuse this data." in said
    assert "data.limits.duplicates: 0.99% found, at most 0.00% allowed" in said
    for words in ("Data of my run", "broken", "train.jsonl", "row 101", "put it right", "median"):
        assert words in said
    assert said.index("refuse") < said.index("Sources") < said.index("Lengths")


def test_the_page_is_one_file_that_loads_and_runs_nothing(pairs: Pairs):
    read = Reader(made(pairs, pairs[:3]))
    assert set(read.tags) & {"script", "link", "img", "iframe", "object"} == set()
    assert read.attributes & {"src", "href", "onclick", "onerror", "onload"} == set()
    html = made(pairs)
    assert not re.search(r"https?://|url\(|@import", html)
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html


def test_data_cannot_become_markup(pairs: Pairs):
    pairs[5] = (pairs[5][0], HOSTILE)
    pairs[6] = (pairs[6][0], HOSTILE * 50)
    pairs += [pairs[5], (pairs[6][0], HOSTILE * 51)]
    read = Reader(made(pairs, pairs[5:8], source=HOSTILE))
    assert set(read.tags) & {"script", "img"} == set()
    assert "\x00" not in "".join(read.texts)
    assert "⟨202E⟩⟨0000⟩" in "".join(read.texts)


def test_a_page_about_little_data_is_whole(pairs: Pairs):
    for rows, evals in ((pairs[:1], None), (pairs[:2], []), (pairs[:1], pairs[:1])):
        assert "rows to train on" in " ".join(Reader(made(rows, evals)).texts)


def test_the_words_that_differ_are_marked():
    rows = [Excerpt("a line 1", "one <b> three"), Excerpt("b line 2", "one <i> three")]
    html = side_by_side(rows)
    assert html.count("<mark>") == 2
    assert "one &lt;<mark>b</mark>&gt; three" in html


def test_texts_keep_their_lines_and_show_what_is_invisible():
    assert text("a\n\tb\r<\x1b") == "a\n\tb⟨000D⟩&lt;⟨001B⟩"
    assert text("\ud800").encode() == "⟨D800⟩".encode()


@pytest.mark.parametrize(
    ("value", "label"),
    [(10, "max_length 10<"), (95, "max_length 95<"), (4096, "max_length 4,096 →<")],
)
def test_a_chart_marks_max_length_or_says_that_it_is_further_on(value: int, label: str):
    svg = bar_chart(Histogram(5, [1, 0, 7, *[3] * 17], is_open=False), "x", (value, "max_length"))
    Reader(svg)
    assert svg.count("<rect") == 19
    assert label in svg
    places = [float(x) for x in re.findall(r'x\d?="([\d.]+)"', svg)]
    assert all(0 <= x <= 460 for x in places)


def test_numbers_are_written_in_little_room():
    assert [short(n) for n in (7, 999, 1000, 1250, 3_400_000)] == ["7", "999", "1k", "1.2k", "3.4M"]
    assert [round_down(n) for n in (0.3, 1, 4.9, 33, 999)] == [0, 1, 2, 20, 500]
