"""Token shards: whole tokenized rows in an Arrow file, read by key through a memory map.

Two files a shard: the tokens, 5 bytes each, and beside them the rows' columns, 36 bytes a row, so
that what batches are made of is known without reading (or keeping) a token.
"""

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import ArrowInvalid

from ftray import storage
from ftray.data.rendering.chat import Tokens
from ftray.data.tokens.cache import ShardCache
from ftray.data.tokens.columns import (
    Columns,
    ColumnsBuilder,
    Flags,
    Ints,
    address_of,
    read_columns,
    to_arrow_file,
)
from ftray.data.tokens.demand import Follower, FoundT
from ftray.data.tokens.manifest import (
    ShardRecord,
    TokenPlan,
    columns_name,
    find_shard,
    read_plan,
    shard_name,
)
from ftray.errors import DataError


class ShardBuilder:
    """Collects the rows of one shard."""

    def __init__(self) -> None:
        self.label_tokens = 0
        self._columns = ColumnsBuilder()
        self._ids = array("i")
        self._trained = bytearray()
        self._ends = array("i", [0])

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self._columns)

    @property
    def tokens(self) -> int:
        """How many tokens there are in all rows."""
        return len(self._ids)

    def add(self, line: int, rows: Sequence[Tokens]) -> None:
        """Append what became of the given line of the range."""
        self._columns.add(line, rows)
        for row in rows:
            self._ids.extend(row.ids)
            self._trained += row.trained
            self._ends.append(len(self._ids))
            self.label_tokens += row.trained.count(1)

    def to_bytes(self) -> bytes:
        """Return the Arrow file of the tokens: the same bytes for the same rows."""
        ends = pa.array(np.frombuffer(self._ends, np.int32))
        ids = pa.array(np.frombuffer(self._ids, np.int32))
        trained = pa.array(np.frombuffer(self._trained, np.uint8))
        columns = {
            "ids": pa.ListArray.from_arrays(ends, ids),
            "trained": pa.ListArray.from_arrays(ends, trained),
        }
        return to_arrow_file(pa.record_batch(columns))

    def columns_to_bytes(self) -> bytes:
        """Return the Arrow file of the rows' columns."""
        return self._columns.to_bytes()


class Shards:
    """The shards of one token set, by number; those behind a URI are copied to the cache first.

    At most `most_open` are open: one that is deleted takes its room on disk until it is closed.
    """

    def __init__(
        self, folder: str, cache: ShardCache, follower: Follower | None, most_open: int
    ) -> None:
        self._folder = folder
        self._cache = cache
        self._follower = follower
        self._most_open = most_open
        self._open: OrderedDict[tuple[int, int], _Tokens] = OrderedDict()

    @cached_property
    def plan(self) -> TokenPlan:
        """What the token set is, or will be."""
        return read_plan(self._folder)

    def record(self, number: int, part: int) -> ShardRecord:
        """Return a shard's record; waits for one that is still to be made."""
        find = partial(find_shard, self._folder, number, part)
        found = self._when_there(find, number, part)
        if found is None:
            raise DataError(f"{self._path(number, part)}: there is no such token shard (yet)")
        return found

    def columns(self, shard: ShardRecord) -> Columns:
        """Return the columns of a shard's rows."""
        path = self._cache.fetch(storage.join(self._folder, columns_name(shard.range, shard.part)))
        with _whole(path, shard.columns_bytes):
            return read_columns(path, shard.source, shard.range, shard.part)

    def ids(self, key: int) -> Ints:
        """Token ids of a row, without a copy. [tokens]"""
        tokens, start, end = self._find(key)
        return tokens.ids[start:end]

    def trained(self, key: int) -> Flags:
        """Which tokens of a row are learned, without a copy. [tokens]"""
        tokens, start, end = self._find(key)
        return tokens.trained[start:end]

    def _find(self, key: int) -> "tuple[_Tokens, int, int]":
        number, part, row = address_of(key)
        tokens = self._opened(number, part)
        return tokens, int(tokens.ends[row]), int(tokens.ends[row + 1])

    def _opened(self, number: int, part: int) -> "_Tokens":
        shard = (number, part)
        if shard not in self._open:
            record = self.record(number, part)
            path = self._path(number, part)
            self._when_there(lambda: storage.exists(path) or None, number, part)
            with _whole(self._cache.fetch(path), record.bytes) as local:
                self._open[shard] = _open_tokens(local, record.sha256)
            if len(self._open) > self._most_open:
                self._open.popitem(last=False)
        return self._open[shard]

    def _when_there(
        self, find: Callable[[], FoundT | None], number: int, part: int
    ) -> FoundT | None:
        if self._follower is None:
            return find()
        source = self.plan.file_of(number)[0].source
        return self._follower.until(find, source, (number, part))

    def _path(self, number: int, part: int) -> str:
        return storage.join(self._folder, shard_name(number, part))


MOST_OPEN = 4096  # memory maps that a process may hold: Linux allows 65,530


@dataclass(frozen=True)
class _Tokens:
    ids: Ints  # [tokens]
    trained: Flags  # [tokens]
    ends: Ints  # [rows + 1]


@contextmanager
def _whole(path: Path, size: int) -> Iterator[Path]:
    """Name the shard that is missing or damaged, and say what to do."""
    if not path.is_file() or path.stat().st_size != size:
        raise _damaged(str(path))
    try:
        yield path
    except (ArrowInvalid, OSError):
        raise _damaged(str(path)) from None


def _damaged(path: str) -> DataError:
    hint = f"delete {path.rpartition('/')[0]}: it is made again"
    return DataError(f"{path}: the token shard is missing or damaged", hint)


def _open_tokens(path: Path, sha256: str) -> _Tokens:
    if storage.sha256(path) != sha256:
        raise ArrowInvalid("another content than was recorded")
    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    ids, trained = batch.column("ids"), batch.column("trained")
    return _Tokens(
        ids.values.to_numpy(zero_copy_only=True),
        trained.values.to_numpy(zero_copy_only=True).view(np.bool_),
        ids.offsets.to_numpy(zero_copy_only=True),
    )
