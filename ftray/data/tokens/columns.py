"""What is known of each tokenized row besides its tokens, as arrays."""

import io
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ftray.data.rendering.chat import Tokens

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Digests = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Columns:
    """One value a row in each array, in the order of the rows.

    `key` names a row for ever: range, part and place in it. `first_label` is the index of the first
    learned token, the row's length where there is none. `line` counts from 1 in the row's range.
    `digest` is of ids and labels, `prompt_digest` of the ids before the first label, or of all
    where there is no prompt; rows that came from one source row have the same.
    """

    key: Longs
    source: Ints
    length: Ints
    labels: Ints
    first_label: Ints
    line: Longs
    digest: Digests
    prompt_digest: Digests

    def __len__(self) -> int:
        return len(self.key)

    def at(self, chosen: "Longs | Flags | slice") -> "Columns":
        """Return some rows: by a mask, by their numbers, or a stretch of them."""
        return Columns(*(column[chosen] for column in self._arrays()))

    def _arrays(self) -> tuple[Any, ...]:
        rows = (self.key, self.source, self.length, self.labels, self.first_label)
        return (*rows, self.line, self.digest, self.prompt_digest)


def joined(parts: Sequence[Columns]) -> Columns:
    """Return the rows of several tables, one after the other."""
    if len(parts) == 1:
        return parts[0]
    empty = _from_table(_EMPTY, 0, 0, 0)
    arrays = zip(*(part._arrays() for part in (empty, *parts)), strict=True)
    return Columns(*(np.concatenate(array) for array in arrays))


def key_of(range_number: int, part: int) -> int:
    """Return the key of a shard's first row; the others count on from it."""
    return (range_number << _PART_BITS + _ROW_BITS) + (part << _ROW_BITS)


class TokenRows(Protocol):
    """Tokenized rows by key, from shards or from memory."""

    def ids(self, key: int) -> Ints:
        """Token ids of a row. [tokens]"""

    def trained(self, key: int) -> Flags:
        """Which tokens of a row are learned. [tokens]"""

    def place(self, key: int) -> str:
        """Name the line that a row comes from."""


class Address(NamedTuple):
    """Where a row is: its range, the part of it that is its shard, and its number in that."""

    range: int
    part: int
    row: int


def address_of(key: int) -> Address:
    """Return where the row of a key is."""
    key = int(key)
    part = key >> _ROW_BITS & MAX_PARTS - 1
    return Address(key >> _PART_BITS + _ROW_BITS, part, key & MAX_ROWS - 1)


_ROW_BITS, _PART_BITS = 20, 20
MAX_ROWS = 1 << _ROW_BITS  # rows that a shard may have
MAX_PARTS = 1 << _PART_BITS


class ColumnsBuilder:
    """Collects the columns of one shard."""

    def __init__(self) -> None:
        self._columns = {name: array(kind) for name, kind in _KINDS.items()}

    def __len__(self) -> int:
        return len(self._columns["line"])

    def add(self, line: int, rows: Iterable[Tokens]) -> None:
        """Append what one source row became."""
        prompt: int | None = None
        for row in rows:
            ids, first = array("i", row.ids), row.trained.find(1)
            first = first if first >= 0 else len(ids)
            if prompt is None:
                prompt = _hash(ids[:first] if first > 1 else ids)
            values = (len(ids), row.trained.count(1), first, line, _hash(ids, row.trained), prompt)
            for column, value in zip(self._columns.values(), values, strict=True):
                column.append(value)

    def to_bytes(self) -> bytes:
        """Return an Arrow file: the same bytes for the same rows."""
        arrays = {name: pa.array(np.frombuffer(c, c.typecode)) for name, c in self._columns.items()}
        return to_arrow_file(pa.record_batch(arrays))


def to_arrow_file(batch: pa.RecordBatch) -> bytes:
    """Return an Arrow file of one batch."""
    file = io.BytesIO()
    with pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    return file.getvalue()


def read_columns(path: Path, source: int, range_number: int, part: int) -> Columns:
    """Read a shard's columns without a copy."""
    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    return _from_table(batch, source, range_number, part)


def columns_of(file: bytes, source: int) -> Columns:
    """Return the columns in an Arrow file's bytes, keys counted from 0."""
    return _from_table(pa.ipc.open_file(file).get_batch(0), source, 0, 0)


# array's type codes are NumPy's too
_KINDS = {
    "length": "i",
    "labels": "i",
    "first_label": "i",
    "line": "q",
    "digest": "Q",
    "prompt_digest": "Q",
}
_EMPTY = pa.record_batch({name: np.empty(0, kind) for name, kind in _KINDS.items()})


def _from_table(batch: pa.RecordBatch, source: int, range_number: int, part: int) -> Columns:
    arrays = {name: batch.column(name).to_numpy(zero_copy_only=True) for name in _KINDS}
    keys = key_of(range_number, part) + np.arange(batch.num_rows, dtype=np.int64)
    return Columns(key=keys, source=np.full(batch.num_rows, source, np.int32), **arrays)


def _hash(ids: "array[int]", trained: bytes = b"") -> int:
    return int.from_bytes(blake2b(ids.tobytes() + trained, digest_size=8).digest(), "little")
