"""What there is to know of a run's data before money is spent on it.

Everything is measured on arrays: a million rows take seconds. Text is decoded only for rows that
the report names, and for a sample that tells the scripts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ftray.config.data import DataConfig
from ftray.config.run import TrainConfig
from ftray.data.batching.samples import Overflow, samples_of
from ftray.data.duplicates import earlier_like, exact, origins
from ftray.data.limits import Shares
from ftray.data.report.excerpts import Decode, Reader
from ftray.data.report.lengths import Filling, Histogram, Spread, filling, histogram, spread
from ftray.data.report.repeats import Overlap, Prints, Repeats, find_overlap, find_repeats, prints
from ftray.data.report.unusual import Unusual, find_unusual
from ftray.data.tokens.columns import Columns, TokenRows

READ_UNASKED = 2_000_000  # rows of which all tokens are read though no setting asks for it


@dataclass(frozen=True)
class BadRow:
    """A row that could not be used: where it is, and why."""

    place: str
    reason: str
    hint: str


@dataclass(frozen=True)
class BadRows:
    """Rows that could not be used: how many, by source and by reason, and the first of them."""

    by_source: list[int] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    first: list[BadRow] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self.by_source)


@dataclass(frozen=True)
class RowSet:
    """What is measured: rows with their columns, the names of their sources, and what is bad."""

    columns: Columns
    rows: TokenRows
    sources: Sequence[str]
    bad: BadRows


@dataclass(frozen=True)
class SourceQuality:
    """What one source gives."""

    name: str
    rows: int
    tokens: int
    label_tokens: int
    bad_rows: int


@dataclass(frozen=True)
class SetQuality:
    """What is known of train, or of eval; `lengths` and `labels` are tokens of a row."""

    sources: list[SourceQuality]
    bad: BadRows
    lengths: Spread | None
    length_bars: Histogram
    labels: Spread | None
    label_bars: Histogram
    overflow: Overflow
    filling: Filling | None  # None: of eval
    repeats: Repeats
    unusual: Unusual | None

    @property
    def rows(self) -> int:
        """How many rows can be used."""
        return sum(source.rows for source in self.sources)

    @property
    def tokens(self) -> int:
        """How many tokens they have."""
        return sum(source.tokens for source in self.sources)

    @property
    def label_tokens(self) -> int:
        """How many of these are learned."""
        return sum(source.label_tokens for source in self.sources)

    @property
    def label_share(self) -> float:
        """Share of the tokens that is learned."""
        return self.label_tokens / max(1, self.tokens)


@dataclass(frozen=True)
class Quality:
    """The report on a run's data."""

    train: SetQuality
    eval: SetQuality | None
    overlap: Overlap | None
    max_length: int
    overflow: str
    limits: dict[str, float | None]  # as `data.limits`

    @property
    def shares(self) -> Shares:
        """What `data.limits` judges."""
        train, repeats, overlap = self.train, self.train.repeats, self.overlap
        rows = max(1, train.rows)
        return Shares(
            duplicates=repeats.exact / rows,
            near_duplicates=None if repeats.near is None else (repeats.exact + repeats.near) / rows,
            overlap=None if overlap is None else overlap.prompts / max(1, overlap.rows),
            bad_rows=train.bad.count / max(1, train.bad.count + train.rows),
            too_long=train.overflow.too_long / rows,
            label_share=train.label_share,
        )


def measure(
    train: RowSet, evals: RowSet | None, data: DataConfig, settings: TrainConfig, decode: Decode
) -> Quality:
    """Measure a run's data; `decode` turns ids into text.

    Near duplicates of more than 2 million rows are looked for only if the config asks: signatures
    take 256 bytes a row.
    """
    is_asked = data.duplicates == "near" or data.limits.near_duplicates is not None
    reader = Reader(train.columns, train.rows, decode)
    reads = is_asked or len(train.columns) <= READ_UNASKED
    known = prints(reader) if reads else None
    measured = _measure(train, reader, known, data, settings)
    measured_evals, found = None, None
    if evals is not None:
        asked = Reader(evals.columns, evals.rows, decode)
        own = None if known is None else prints(asked, known.common)
        measured_evals = _measure(evals, asked, own, data, None)
        found = find_overlap(reader, asked, known, own)
    return Quality(
        measured, measured_evals, found, data.max_length, data.overflow, data.limits.model_dump()
    )


def _measure(
    given: RowSet,
    reader: Reader,
    known: Prints | None,
    data: DataConfig,
    settings: TrainConfig | None,
) -> SetQuality:
    columns = given.columns
    # a report is of most interest where overflow=error would stop the run
    fits = data.model_copy(update={"overflow": "truncate"}) if data.overflow == "error" else data
    samples, overflow = samples_of(columns, given.rows, fits)
    filled = None
    if settings is not None:
        unlike = _unlike(columns, known, data)
        if len(unlike) < len(columns):
            samples, _ = samples_of(unlike, given.rows, fits)
        filled = filling(samples, data, settings)
    return SetQuality(
        sources=_sources(given),
        bad=given.bad,
        lengths=spread(columns.length),
        length_bars=histogram(columns.length),
        labels=spread(columns.labels),
        label_bars=histogram(columns.labels),
        overflow=overflow,
        filling=filled,
        repeats=find_repeats(reader, known),
        unusual=find_unusual(reader) if len(columns) else None,
    )


def _unlike(columns: Columns, known: Prints | None, data: DataConfig) -> Columns:
    """Leave out what `data.duplicates` leaves out."""
    if data.duplicates == "keep":
        return columns
    repeats = exact(columns)
    if data.duplicates == "near" and known is not None:
        repeats |= earlier_like(known.signatures, origins(columns)) >= 0
    return columns.at(~repeats)


def _sources(given: RowSet) -> list[SourceQuality]:
    columns, count = given.columns, len(given.sources)
    rows = np.bincount(columns.source, minlength=count)
    tokens = np.bincount(columns.source, columns.length, count)
    labels = np.bincount(columns.source, columns.labels, count)
    return [
        SourceQuality(name, int(rows[i]), int(tokens[i]), int(labels[i]), given.bad.by_source[i])
        for i, name in enumerate(given.sources)
    ]
