"""Token shards: whole tokenized rows in an Arrow file, read by index through a memory map."""

import io
from array import array
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ftray import storage
from ftray.data.chat import Tokens
from ftray.data.files import place
from ftray.data.manifest import TokenSet, read_manifest, shard_name
from ftray.errors import DataError

Ints = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]


class ShardBuilder:
    """Collects the rows of one shard; 5 bytes a token."""

    def __init__(self) -> None:
        self.label_tokens = 0
        self._ids = array("i")
        self._trained = bytearray()
        self._ends = array("i", [0])
        self._first_labels = array("i")
        self._lines = array("q")

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self._lines)

    @property
    def tokens(self) -> int:
        """How many tokens there are in all rows."""
        return len(self._ids)

    def add(self, line: int, tokens: Tokens) -> None:
        """Append a row that comes from the given line of the source."""
        flags = bytes(tokens.trained)
        self._ids.extend(tokens.ids)
        self._trained += flags
        self._ends.append(len(self._ids))
        first_label = flags.find(1)
        self._first_labels.append(first_label if first_label >= 0 else len(flags))
        self._lines.append(line)
        self.label_tokens += flags.count(1)

    def to_bytes(self) -> bytes:
        """Return the Arrow file: the same bytes for the same rows."""
        ends = pa.array(np.frombuffer(self._ends, np.int32))
        trained = np.frombuffer(self._trained, np.uint8)
        columns = {
            "ids": pa.ListArray.from_arrays(ends, pa.array(np.frombuffer(self._ids, np.int32))),
            "trained": pa.ListArray.from_arrays(ends, pa.array(trained)),
            "first_label": pa.array(np.frombuffer(self._first_labels, np.int32)),
            "line": pa.array(np.frombuffer(self._lines, np.int64)),
        }
        batch = pa.record_batch(columns)
        file = io.BytesIO()
        with pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        return file.getvalue()


class Rows:
    """All rows of a token set, by number; shards are mapped when first needed.

    Each worker opens its own, which it may do from a pickled one; `cache` is a folder for copies
    where the token set is behind a URI.
    """

    def __init__(self, tokens: TokenSet, cache: Path) -> None:
        self._tokens = tokens
        self._cache = cache
        self._manifest = read_manifest(tokens.folder)
        self._ends = list(accumulate(shard.rows for shard in self._manifest.shards))
        self._open: dict[int, _Shard] = {}

    def __reduce__(self) -> tuple[type["Rows"], tuple[TokenSet, Path]]:
        return Rows, (self._tokens, self._cache)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @cached_property
    def lengths(self) -> Ints:
        """Tokens of each row, before any cut. [rows]"""
        return self._gather(lambda shard: np.diff(shard.ends).astype(np.int32))

    @cached_property
    def first_label(self) -> Ints:
        """Index of each row's first learned token, its length where there is none. [rows]"""
        return self._gather(lambda shard: shard.first_labels)

    def ids(self, row: int) -> Ints:
        """Token ids of a row, without a copy. [tokens]"""
        shard, start, end = self._find(row)
        return shard.ids[start:end]

    def trained(self, row: int) -> Flags:
        """Which tokens of a row are learned, without a copy. [tokens]"""
        shard, start, end = self._find(row)
        return shard.trained[start:end]

    def place(self, row: int) -> str:
        """Name the line that a row comes from."""
        number = bisect_right(self._ends, row)
        source = self._manifest.sources[self._manifest.shards[number].source]
        line = self._shard(number).lines[row - self._first_row(number)]
        return place(source.name, source.kind, int(line))

    def _gather(self, column: "Callable[[_Shard], Ints]") -> Ints:
        parts = [column(self._shard(number)) for number in range(len(self._ends))]
        return np.concatenate([np.empty(0, np.int32), *parts])

    def _find(self, row: int) -> "tuple[_Shard, int, int]":
        number = bisect_right(self._ends, row)
        shard = self._shard(number)
        within = row - self._first_row(number)
        return shard, int(shard.ends[within]), int(shard.ends[within + 1])

    def _first_row(self, number: int) -> int:
        return self._ends[number - 1] if number else 0

    def _shard(self, number: int) -> "_Shard":
        if number not in self._open:
            path = storage.join(self._tokens.folder, shard_name(number))
            local = storage.local_copy(path, self._cache)
            self._open[number] = _open_shard(local, self._manifest.shards[number].bytes)
        return self._open[number]


@dataclass(frozen=True)
class _Shard:
    ids: Ints  # [tokens]
    trained: Flags  # [tokens]
    ends: Ints  # [rows + 1]
    first_labels: Ints  # [rows]
    lines: npt.NDArray[np.int64]  # [rows]


def _open_shard(path: Path, size: int) -> _Shard:
    if not path.is_file() or path.stat().st_size != size:
        hint = f"delete {path.parent}: it is made again"
        raise DataError(f"{path}: the token shard is missing or damaged", hint)
    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    ids, trained = batch.column("ids"), batch.column("trained")
    return _Shard(
        ids.values.to_numpy(zero_copy_only=True),
        trained.values.to_numpy(zero_copy_only=True).view(np.bool_),
        ids.offsets.to_numpy(zero_copy_only=True),
        batch.column("first_label").to_numpy(zero_copy_only=True),
        batch.column("line").to_numpy(zero_copy_only=True),
    )
