"""Tokenized rows by key: of a complete token set, or of one whose shards are still being made."""

from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import takewhile

import numpy as np

from ftray import storage
from ftray.data.reading.files import row_error
from ftray.data.tokens.cache import ShardCache
from ftray.data.tokens.columns import Columns, Flags, Ints, address_of, joined
from ftray.data.tokens.demand import Follower
from ftray.data.tokens.manifest import ShardRecord, TokenPlan, find_manifest, lines_before, where
from ftray.data.tokens.shards import MOST_OPEN, Shards
from ftray.errors import DataError


class Rows:
    """The rows of a token set, in the order of their files.

    With a follower it may be incomplete: what is not made yet is waited for. Who made a shard may
    have left bad rows out of it: with `fails_on_bad_rows` the first such shard is a DataError.
    """

    def __init__(
        self,
        folder: str,
        cache: ShardCache,
        follower: Follower | None = None,
        *,
        fails_on_bad_rows: bool = False,
        most_open: int = MOST_OPEN,
    ) -> None:
        self._folder = folder
        self._fails_on_bad_rows = fails_on_bad_rows
        self._shards = Shards(folder, cache, follower, most_open)

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
        for shard in self._feed(source):
            if self._fails_on_bad_rows and shard.bad_rows:
                raise self._bad_row(shard)
            yield self._shards.columns(shard)

    def ids(self, key: int) -> Ints:
        """Token ids of a row, without a copy. [tokens]"""
        return self._shards.ids(key)

    def trained(self, key: int) -> Flags:
        """Which tokens of a row are learned, without a copy. [tokens]"""
        return self._shards.trained(key)

    def place(self, key: int) -> str:
        """Name the line that a row comes from."""
        number, part, row = address_of(key)
        shards = self._up_to(number, part)
        line = int(self._shards.columns(shards[-1]).line[row])
        return where(self.plan, lines_before(self.plan, shards, number), number, line)

    def remembered(self, name: str, find: Callable[[], Flags]) -> Flags:
        """Return what was once found out of each row; it is kept beside the shards."""
        path = storage.join(self._folder, f"{name}.bits")
        if (data := storage.read_if_exists(path)) is None:
            data = np.packbits(find()).tobytes()
            storage.create(path, data)
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=len(self.columns))
        return bits.astype(np.bool_)

    def _bad_row(self, shard: ShardRecord) -> DataError:
        """Name the first row that was left out of a shard: a manifest does not have its line."""
        file, _ = self.plan.file_of(shard.range)
        bad = self._shards.record(shard.range, shard.part).first_bad[0]
        before = lines_before(self.plan, self._up_to(shard.range, shard.part), shard.range)
        return row_error(file.name, file.kind, before + bad.line, bad.reason, bad.hint)

    def _up_to(self, number: int, part: int) -> list[ShardRecord]:
        """Return the shards of a source up to one: who comes later may not be made yet."""
        feed = self._feed(self.plan.file_of(number)[0].source)
        return list(takewhile(lambda shard: (shard.range, shard.part) <= (number, part), feed))

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
