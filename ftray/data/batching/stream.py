"""Global batches of rows that are still being made.

The first time through, each source's rows come in the order of its files, shuffled by the seed
within a window; sources are mixed in every window. Later epochs permute each source as a whole, if
its shards are kept. A window waits for the rows that it needs and for no others, so what is in
batch `n` does not depend on when which shard was made.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property, partial
from threading import Lock, Thread
from typing import Protocol

import numpy as np

from ftray.config.data import DataConfig, sources_of
from ftray.config.run import TrainConfig
from ftray.data.batching.batches import packed
from ftray.data.batching.mixture import permutation
from ftray.data.batching.samples import Pack, samples_of
from ftray.data.batching.selection import set_aside
from ftray.data.tokens.columns import Columns, Longs, TokenRows, address_of, joined
from ftray.data.tokens.manifest import TokenPlan
from ftray.data.tokens.tokenization import SHARD_TOKENS
from ftray.errors import DataError


class GrowingRows(TokenRows, Protocol):
    """Tokenized rows of which more may come."""

    @property
    def plan(self) -> TokenPlan:
        """What the token set will be."""

    def stream(self, source: int) -> Iterator[Columns]:
        """Yield the columns of a source's shards in their order, waiting for each."""


@dataclass(frozen=True)
class Draw:
    """How far one source is: the row that comes next, in which time through it."""

    cycle: int = 0
    row: int = 0


@dataclass(frozen=True)
class Cursor:
    """Where a window begins: all that it depends on besides the rows.

    `taken` counts rows since the epoch began, as if no source had ended.
    """

    number: int
    epoch: int
    taken: float
    draws: tuple[Draw, ...]


@dataclass(frozen=True)
class Window:
    """A stretch of the stream: its packs, and the first and last shard in it of each source.

    A shard is named by its range and its part of it.
    """

    cursor: Cursor
    packs: list[Pack]
    first: list[tuple[int, int] | None]
    last: list[tuple[int, int] | None]
    then: Cursor


class StreamBatches:
    """Batches of `train.max_steps` steps, which run on over windows and epochs."""

    def __init__(
        self, rows: GrowingRows, data: DataConfig, train: TrainConfig, tokens: int = SHARD_TOKENS
    ) -> None:
        self._train = train
        self._windows = _Windows(rows, data, train.seed, tokens)
        start = Cursor(0, 0, 0.0, tuple(Draw() for _ in sources_of(data.train)))
        self._cursors = [start]  # of each window that was reached, and the next
        self._ends: list[int] = []  # packs up to the end of each window
        self._recent: dict[int, Future[Window]] = {}

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self._train.max_steps or 0

    def epoch_of(self, step: int) -> int:
        """Return the epoch, from 0, that a step begins in."""
        return self.window_of(step).cursor.epoch

    def packs(self, step: int) -> list[Pack]:
        """Return the packs of a global batch in their order."""
        size = self._train.global_batch_size
        packs: list[Pack] = []
        while len(packs) < size:
            position = step * size + len(packs)
            window = self._window_with(position)
            start = position - self._first_pack(window.cursor.number)
            packs += window.packs[start : start + size - len(packs)]
        return packs

    def window_of(self, step: int) -> Window:
        """Return the window that a step begins in."""
        return self._window_with(step * self._train.global_batch_size)

    def _window_with(self, position: int) -> Window:
        while not self._ends or position >= self._ends[-1]:
            number = len(self._ends)
            window = self._window(number)
            if window.cursor.epoch > 0 and not (self._ends[-1] + len(window.packs)):
                raise DataError(
                    "data.train: no row has a token to learn",
                    "raise data.max_length, or see data.overflow",
                )
            self._ends.append(self._first_pack(number) + len(window.packs))
            self._cursors.append(window.then)
        return self._window(bisect_right(self._ends, position))

    def _first_pack(self, number: int) -> int:
        return self._ends[number - 1] if number else 0

    def _window(self, number: int) -> Window:
        """Return a window; the next one is made in the background meanwhile."""
        window = self._future(number, self._cursors[number]).result()
        self._recent = {n: w for n, w in self._recent.items() if number - 1 <= n <= number + 2}
        self._future(number + 1, window.then)
        return window

    def _future(self, number: int, cursor: Cursor) -> "Future[Window]":
        if number not in self._recent:
            self._recent[number] = _in_background(partial(self._windows.at, cursor))
        return self._recent[number]


class _Windows:
    """Windows as a function of their cursor."""

    def __init__(self, rows: GrowingRows, data: DataConfig, seed: int, tokens: int) -> None:
        self._rows = rows
        self._data = data
        self._seed = seed
        self._tokens = tokens
        self._lock = Lock()
        sources = range(len(sources_of(data.train)))
        self._sources = [_Source(rows, number, data, seed) for number in sources]
        self._weighted = any(source.weight for source in sources_of(data.train))
        self._shares = rows.plan.shares(sources_of(data.train))

    def at(self, cursor: Cursor) -> Window:
        """Take the next rows of each source, and pack them."""
        with self._lock:
            parts, then = self._take(cursor)
        samples, _ = samples_of(joined(parts), self._rows, self._data)
        seeds = (self._seed, cursor.number)
        packs = packed(samples, permutation(len(samples), *seeds, "window"), self._data, seeds)
        return Window(
            cursor,
            [[samples[number] for number in numbers] for numbers in packs],
            [_shard(part, 0) for part in parts],
            [_shard(part, -1) for part in parts],
            then,
        )

    def _take(self, cursor: Cursor) -> tuple[list[Columns], Cursor]:
        until = cursor.taken + self._rows_in(cursor.number)
        parts: list[Columns] = []
        draws: list[Draw] = []
        for source, share, draw in zip(self._sources, self._shares, cursor.draws, strict=True):
            wanted = int(share * until) - int(share * cursor.taken)
            part, after = source.take(draw, wanted, wraps=self._weighted)
            parts.append(part)
            draws.append(after)
        ended = all(s.has_ended(draw) for s, draw in zip(self._sources, draws, strict=True))
        epoch, number = cursor.epoch, cursor.number + 1
        if self._weighted:
            cycles = [d.cycle for s, d in zip(self._sources, draws, strict=True) if not s.is_empty]
            return parts, Cursor(number, min(cycles), until, tuple(draws))
        if ended:
            again = tuple(Draw(epoch + 1) for _ in draws)
            return parts, Cursor(number, epoch + 1, 0.0, again)
        return parts, Cursor(number, epoch, until, tuple(draws))

    @cached_property
    def _rows_per_shard(self) -> float:
        """Rows that have a shard's tokens, as in the first shard that is not empty."""
        shards = (part for source in self._sources for part in source.shards() if len(part))
        first = next(shards, None)
        if first is None:
            raise DataError(
                "data.train: no row is left to train on",
                "see data.on_bad_row and data.eval_fraction",
            )
        return self._tokens * len(first) / float(first.length.sum())

    def _rows_in(self, number: int) -> float:
        """The first window can be trained on when one shard is made; later ones shuffle more."""
        return max(1.0, self._rows_per_shard * min(1 << number, _MOST_SHARDS))


_MOST_SHARDS = 16


class _Source:
    """The rows of one source in the order of its files, as far as they were asked for."""

    def __init__(self, rows: GrowingRows, number: int, data: DataConfig, seed: int) -> None:
        self._number = number
        self._data = data
        self._seed = seed
        self._coming = rows.stream(number)
        self._shards: list[Columns] = []
        self._ends: list[int] = []
        self._is_whole = False
        self._order: tuple[int, Longs] = (0, np.empty(0, np.int64))

    @property
    def is_empty(self) -> bool:
        """Whether it is known that there is nothing in it to train on."""
        return self._is_whole and not sum(self._ends[-1:])

    def shards(self) -> Iterator[Columns]:
        """Yield what is trained on of each shard."""
        number = 0
        while number < len(self._shards) or self._next_comes():
            yield self._shards[number]
            number += 1

    def take(self, draw: Draw, wanted: int, *, wraps: bool) -> tuple[Columns, Draw]:
        """Return the next rows, fewer at the end of a cycle unless it wraps into the next one."""
        parts = [self._rows(draw.cycle, draw.row, wanted)]
        draw = Draw(draw.cycle, draw.row + len(parts[0]))
        while wraps and (missing := wanted - sum(map(len, parts))) and self._ends[-1:] > [0]:
            draw = Draw(draw.cycle + 1, 0)
            parts.append(self._rows(draw.cycle, 0, missing))
            draw = Draw(draw.cycle, len(parts[-1]))
        return joined(parts), draw

    def has_ended(self, draw: Draw) -> bool:
        """Say whether it is known that a cycle has no more rows."""
        return self._is_whole and draw.row >= sum(self._ends[-1:])

    def _rows(self, cycle: int, start: int, count: int) -> Columns:
        while sum(self._ends[-1:]) < start + count and self._next_comes():
            pass
        stop = min(start + count, sum(self._ends[-1:]))
        if not cycle or not self._data.keep_shards:
            return self._in_file_order(start, stop)
        if self._order[0] != cycle:
            size = self._ends[-1]
            order = permutation(size, self._seed, cycle, f"source {self._number}")
            self._order = (cycle, order)
            self._shards, self._ends = [joined(self._shards)], self._ends[-1:]  # once, not a window
        return self._shards[0].at(self._order[1][start:stop])

    def _in_file_order(self, start: int, stop: int) -> Columns:
        first = bisect_right(self._ends, start)
        parts = []
        for number in range(first, len(self._shards)):
            before = self._ends[number - 1] if number else 0
            if before >= stop:
                break
            parts.append(self._shards[number].at(slice(max(0, start - before), stop - before)))
        return joined(parts)

    def _next_comes(self) -> bool:
        """Wait for the next shard; say whether there is one."""
        shard = next(self._coming, None)
        if shard is None:
            self._is_whole = True
            return False
        self._shards.append(shard.at(~set_aside(shard, self._data)))
        self._ends.append(sum(self._ends[-1:]) + len(self._shards[-1]))
        return True


def _shard(part: Columns, row: int) -> tuple[int, int] | None:
    """Return the range and part of a row; None where there is no row."""
    return address_of(part.key[row])[:2] if len(part) else None


def _in_background(make: Callable[[], Window]) -> "Future[Window]":
    """Start a daemon thread: what waits for shards that nobody needs must not hold up the end."""
    future: Future[Window] = Future()

    def run() -> None:
        try:
            future.set_result(make())
        except BaseException as error:  # noqa: BLE001  # it is raised where the window is used
            future.set_exception(error)

    Thread(target=run, name="next window", daemon=True).start()
    return future
