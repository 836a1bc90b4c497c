"""Rows unlike the others: answers far longer or shorter, or in another script."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ftray.data.report.excerpts import Excerpt, Reader
from ftray.data.report.lengths import Usual, usual
from ftray.data.report.scripts import dominant_script
from ftray.data.tokens.columns import Longs

SAMPLED = 5000
TOLD = 5


@dataclass(frozen=True)
class Odd:
    """A row that stands out, and by what: "812 tokens", "cyrillic"."""

    what: str
    row: Excerpt


@dataclass(frozen=True)
class Unusual:
    """Answers that stand out by their number of learned tokens or by their script.

    Scripts are of a sample, counted in `scripts`; one is rare when less than 1% of the rows have
    it, which takes 100 rows to say.
    """

    usual: Usual
    long: int
    short: int
    longest: list[Odd]
    shortest: list[Odd]
    scripts: dict[str, int]
    rare: list[Odd]


def find_unusual(reader: Reader) -> Unusual:
    """Find rows that stand out; those that stand out most are named."""
    labels = reader.columns.labels
    normal = usual(labels)
    long = np.flatnonzero(labels > normal.most)
    # a single learned token is the one that ends an answer
    short = np.flatnonzero((labels < normal.least) | (labels <= 1))
    longest = long[np.argsort(-labels[long], kind="stable")][:TOLD]
    shortest = short[np.argsort(labels[short], kind="stable")][:TOLD]
    sample = _spread(len(labels))
    scripts = [dominant_script(reader.answer(row)) for row in sample.tolist()]
    counts = Counter(scripts)
    rare = {name for name, count in counts.items() if count * 100 < len(scripts)}
    return Unusual(
        usual=normal,
        long=len(long),
        short=len(short),
        longest=[_by_length(reader, row) for row in longest.tolist()],
        shortest=[_by_length(reader, row) for row in shortest.tolist()],
        scripts=dict(counts.most_common()),
        rare=[
            Odd(script, reader.answer_excerpt(row))
            for row, script in zip(sample.tolist(), scripts, strict=True)
            if script in rare
        ][:TOLD],
    )


def _by_length(reader: Reader, row: int) -> Odd:
    labels = int(reader.columns.labels[row])
    said = "1 token" if labels == 1 else f"{labels:,} tokens"
    return Odd(said, reader.answer_excerpt(row))


def _spread(rows: int) -> Longs:
    return np.unique(np.linspace(0, max(0, rows - 1), min(rows, SAMPLED), dtype=np.int64))
