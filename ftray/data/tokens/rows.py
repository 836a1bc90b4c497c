"""Tokenized rows by key: of a complete token set, or of one whose shards are still being made."""

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np

from ftray import storage
from ftray.data.tokens.cache import ShardCache
from ftray.data.tokens.columns import Columns, Flags, Ints, address_of, joined
from ftray.data.tokens.demand import Follower
from ftray.data.tokens.manifest import ShardRecord, TokenPlan, find_manifest, lines_before, where
from ftray.data.tokens.shards import Shards


class Rows:
    """The rows of a token set, in the order of their files.

    With a follower it may be incomplete: what is not made yet is waited for.
    """

    def __init__(self, folder: str, cache: ShardCache, follower: Follower | None = None) -> None:
        self._folder = folder
        self._shards = Shards(folder, cache, follower)

    @cached_property
    def plan(self) -> TokenPlan:
        """What the token set is, or will be."""
        return self._shards.plan

    @cached_property
    def columns(self) -> Columns:
        """The columns of all rows; waits for shards that are still being made."""
        return joined([self.of(source) for source in range(len(self.plan.sources))])

    def of(self, source: int) -> Columns:
        """Return the columns of all rows of one source, waiting as `columns` does."""
        return joined(list(self.stream(source)))

    def stream(self, source: int) -> Iterator[Columns]:
        """Yield the columns of a source's shards in their order, waiting for each."""
        return (self._shards.columns(shard) for shard in self._feed(source))

    def ids(self, key: int) -> Ints:
        """Token ids of a row, without a copy. [tokens]"""
        return self._shards.ids(key)

    def trained(self, key: int) -> Flags:
        """Which tokens of a row are learned, without a copy. [tokens]"""
        return self._shards.trained(key)

    def place(self, key: int) -> str:
        """Name the line that a row comes from."""
        number, part, row = address_of(key)
        file, first = self.plan.file_of(number)
        shards = [shard for shard in self._feed(file.source) if first <= shard.range <= number]
        [shard] = [shard for shard in shards if (shard.range, shard.part) == (number, part)]
        line = int(self._shards.columns(shard).line[row])
        return where(self.plan, lines_before(self.plan, shards, number), number, line)

    def remembered(self, name: str, find: Callable[[], Flags]) -> Flags:
        """Return what was once found out of each row; it is kept beside the shards."""
        path = storage.join(self._folder, f"{name}.bits")
        if (data := storage.read_if_exists(path)) is None:
            data = np.packbits(find()).tobytes()
            storage.create(path, data)
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=len(self.columns))
        return bits.astype(np.bool_)

    def _feed(self, source: int) -> Iterator[ShardRecord]:
        if self._complete is not None:
            yield from (shard for shard in self._complete if shard.source == source)
            return
        for number in self.plan.ranges_of(source):
            part, is_last = 0, False
            while not is_last:
                shard = self._shards.record(number, part)
                yield shard
                part, is_last = part + 1, shard.is_last

    @cached_property
    def _complete(self) -> list[ShardRecord] | None:
        manifest = find_manifest(self._folder)
        return manifest.shards if manifest else None
