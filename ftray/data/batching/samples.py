"""What batches are made of: rows, or pieces of rows, of at most `data.max_length` tokens."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ftray.config.data import DataConfig
from ftray.data.tokens.columns import Columns, Flags, Ints, Longs, TokenRows
from ftray.errors import DataError


class Sample(NamedTuple):
    """Tokens [start, start + length) of a row, and which source it is from."""

    key: int
    start: int
    length: int
    source: int


Pack = list[Sample]  # in the order in which their tokens follow each other


@dataclass(frozen=True)
class Samples:
    """Samples as arrays, in the order of their rows."""

    key: Longs
    start: Ints
    length: Ints
    source: Ints

    def __len__(self) -> int:
        return len(self.key)

    def at(self, chosen: "Longs | Flags | slice") -> "Samples":
        """Return some samples: by a mask, by their numbers, or a stretch of them."""
        start, length, source = self.start[chosen], self.length[chosen], self.source[chosen]
        return Samples(self.key[chosen], start, length, source)

    def __getitem__(self, number: int) -> Sample:
        start, length = int(self.start[number]), int(self.length[number])
        return Sample(int(self.key[number]), start, length, int(self.source[number]))


@dataclass(frozen=True)
class Overflow:
    """What `data.max_length` and `data.overflow` do to rows.

    `too_long` rows are truncated, split into `pieces`, or left out; `unlearned` rows or pieces are
    left out because no token to learn is in them.
    """

    rows: int
    too_long: int
    pieces: int
    unlearned: int

    def __str__(self) -> str:
        return (
            f"of {self.rows} rows {self.too_long} are longer than data.max_length ({self.pieces}"
            f" pieces of them are used); {self.unlearned} are left out since nothing to learn is"
            " left of them"
        )


def samples_of(columns: Columns, rows: TokenRows, data: DataConfig) -> tuple[Samples, Overflow]:
    """Fit rows into `data.max_length`; what has no token to learn is left out.

    DataError names the first row that is too long, where `data.overflow` is error.
    """
    is_long = columns.length > data.max_length
    if not is_long.any():
        whole = _heads(columns, data.max_length)
        return whole, Overflow(len(columns), 0, 0, len(columns) - len(whole))
    long, short = columns.at(is_long), _heads(columns.at(~is_long), data.max_length)
    match data.overflow:
        case "truncate":
            pieces = _heads(long, data.max_length)
        case "split":
            pieces = _split(long, rows, data.max_length)
        case "drop":
            pieces = _heads(long.at(slice(0)), data.max_length)
        case "error":
            raise _too_long(long, rows, data)
    samples = _in_order(short, pieces)
    dropped = len(long) if data.overflow == "drop" else 0
    unlearned = len(columns) - dropped - len(np.unique(samples.key))
    return samples, Overflow(len(columns), len(long), len(pieces), unlearned)


def _heads(columns: Columns, max_length: int) -> Samples:
    """Take the start of each row that has a token to learn in it."""
    kept = columns.at(columns.first_label < np.minimum(columns.length, max_length))
    length = np.minimum(kept.length, max_length)
    return Samples(kept.key, np.zeros_like(length), length, kept.source)


def _split(columns: Columns, rows: TokenRows, max_length: int) -> Samples:
    """Cut rows into pieces that share a token: so each label has what it is predicted from."""
    found: list[tuple[int, int, int, int]] = []
    for key, length, source in zip(columns.key, columns.length, columns.source, strict=True):
        trained = rows.trained(key)
        for start in range(0, int(length) - 1, max_length - 1):
            end = min(start + max_length, int(length))
            if trained[start + 1 : end].any():
                found.append((int(key), start, end - start, int(source)))
    table = np.array(found, np.int64).reshape(-1, 4)
    return Samples(table[:, 0], *table[:, 1:].T.astype(np.int32))


def _in_order(first: Samples, second: Samples) -> Samples:
    both = Samples(
        np.concatenate([first.key, second.key]),
        np.concatenate([first.start, second.start]),
        np.concatenate([first.length, second.length]),
        np.concatenate([first.source, second.source]),
    )
    return both.at(np.argsort(both.key, kind="stable"))


def _too_long(long: Columns, rows: TokenRows, data: DataConfig) -> DataError:
    first = int(long.key[0])
    return DataError(
        f"{rows.place(first)}: {long.length[0]} tokens, more than data.max_length="
        f"{data.max_length} ({len(long)} such rows in all)",
        "raise data.max_length, or set data.overflow to truncate, split or drop",
    )
