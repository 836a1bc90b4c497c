"""How far a run has come in its shards: told by its first worker, read by who makes them."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Protocol, TypeVar

from ftray import storage
from ftray.data.reading.files import Range
from ftray.errors import DataError, FtrayError

Shard = tuple[int, int]  # range and part
FoundT = TypeVar("FoundT")


@dataclass(frozen=True)
class Signals:
    """Where a run and who makes its shards leave word for each other."""

    error: str
    reached: str

    @classmethod
    def of(cls, run_folder: str) -> "Signals":
        """Return the places of a run."""
        names = ("shards-error.json", "shards-reached.json")
        return cls(*(storage.join(run_folder, name) for name in names))

    def clear(self) -> None:
        """Forget what an earlier attempt has left."""
        for path in (self.error, self.reached):
            storage.delete(path)


@dataclass(frozen=True)
class Reached:
    """By source: the first shard that is still needed, and the furthest that was asked for.

    A run goes through the shards in a circle: a last one that is before the first comes after it.
    """

    first: list[Shard | None]
    last: list[Shard | None]

    @property
    def is_told(self) -> bool:
        """Whether the run has said anything yet."""
        return any(self.first) or any(self.last)

    def is_near(self, source: int, shard: Shard, ahead: int) -> bool:
        """Say whether a shard is at most `ahead` of the last in its range, or in one before that.

        A range before it may be needed to its end, however far behind the last one is.
        """
        first, last = self.first[source] or (0, 0), self.last[source]
        if last is None:
            return False
        if shard[0] != last[0]:
            return _way(first[:1], shard[:1]) < _way(first[:1], last[:1])
        is_all_round = shard[0] == first[0] and last < first
        return is_all_round or shard[1] <= last[1] + ahead


def _way(start: tuple[int, ...], to: tuple[int, ...]) -> tuple[bool, tuple[int, ...]]:
    """Order shards, or ranges, by how they come from a start on, in the circle."""
    return to < start, to


class Demand:
    """Writes down which shards are needed, at once when one is waited for."""

    def __init__(self, path: str, sources: int) -> None:
        self._path = path
        self._first: list[Shard | None] = [None] * sources
        self._last: list[Shard | None] = [None] * sources
        self._written = ""
        self._written_at = 0.0
        self._lock = Lock()  # the next window asks beside the training

    def needs(self, first: Sequence[Shard | None], last: Sequence[Shard | None]) -> None:
        """Say what a restart would need, first and last: earlier shards may go."""
        with self._lock:
            for source, (one, other) in enumerate(zip(first, last, strict=True)):
                if one is None or other is None:  # a window without a row of this source
                    self._first[source] = self._first[source] or self._last[source]
                    continue
                if self._has_passed(source, one):
                    self._last[source] = other
                self._first[source] = one
                self._go_on_to(source, other)
            self._write()

    def takes(self, shards: Iterable[tuple[int, Shard]]) -> None:
        """Say which shards, by source, all workers need now: only one of them can say so."""
        with self._lock:
            for source, shard in shards:
                self._go_on_to(source, shard)
            self._write()

    def asks_for(self, source: int, shard: Shard, *, waits: bool) -> None:
        """Say that a shard was asked for."""
        with self._lock:
            self._go_on_to(source, shard)
            is_known = any(self._first)  # before, a restarted run goes through what is behind it
            if waits or (is_known and time.monotonic() - self._written_at > _SECONDS):
                self._write()

    def _has_passed(self, source: int, first: Shard) -> bool:
        """Say whether a new first shard is behind the last one that was asked for."""
        before, last = self._first[source], self._last[source]
        return before is None or last is None or _way(before, last) < _way(before, first)

    def _go_on_to(self, source: int, shard: Shard) -> None:
        first, last = self._first[source], self._last[source]
        if first is None or last is None or _way(first, last) < _way(first, shard):
            self._last[source] = shard

    def _write(self) -> None:
        text = json.dumps({"first": self._first, "last": self._last})
        if text != self._written:
            self._written, self._written_at = text, time.monotonic()
            storage.write(self._path, text.encode())


class Follower:
    """Waits for shards that are still being made; of a run's workers one says what it waits for."""

    def __init__(self, error_path: str, demand: Demand | None) -> None:
        self._error_path = error_path
        self._demand = demand
        self._seconds = _REMOTE_LOOK_SECONDS if storage.is_uri(error_path) else _LOOK_SECONDS

    def until(self, find: Callable[[], FoundT | None], source: int, shard: Shard) -> FoundT:
        """Ask for a shard and return what is found once it is there.

        Raises the error that ended the making of shards, if one did.
        """
        found = find()
        if self._demand is not None:
            self._demand.asks_for(source, shard, waits=found is None)
        while found is None:
            raise_told(self._error_path)
            time.sleep(self._seconds)
            found = find()
        return found


def tell(path: str, error: Exception) -> None:
    """Leave the error that ended the making of shards, for who waits for them."""
    bug = DataError(
        f"making token shards failed: {type(error).__name__}: {_last_line(error)}",
        "this is a mistake in ftray: the driver's log has the traceback",
    )
    known = error if isinstance(error, FtrayError) else bug
    message, hint = known.message, known.hint
    storage.write(path, json.dumps({"message": message, "hint": hint}).encode())


def _last_line(error: Exception) -> str:
    """Of an error out of a task that is the error itself, below its traceback."""
    return (str(error).strip().splitlines() or [""])[-1]


def raise_told(path: str) -> None:
    """Raise the error that ended the making of shards, if there is one."""
    if (data := storage.read_if_exists(path)) is not None:
        told = json.loads(data)
        raise DataError(told["message"], told["hint"])


def release(path: str) -> None:
    """Say that no more shards are needed: who holds some back is to end."""
    storage.write(path, _RELEASED)


def read_reached(path: str, sources: int) -> Reached:
    """Read how far a run is; before it says so it is at the beginning."""
    data = storage.read_if_exists(path)
    tree = json.loads(data) if data else None
    if tree is None:
        return Reached([None] * sources, [None] * sources)
    first, last = ([tuple(s) if s else None for s in tree[key]] for key in ("first", "last"))
    return Reached(first, last)


class Gate(Protocol):
    """Decides when the next shard of a range may be published."""

    def wait(self, part: Range, number: int) -> None:
        """Return once shard `number` of a range may be published."""


class OpenGate:
    """Lets shards be made as fast as they can be."""

    def wait(self, part: Range, number: int) -> None:
        """Return at once."""


@dataclass(frozen=True)
class EndGate:
    """Lets shards be made as fast as they can be, until the run needs no more."""

    path: str

    def wait(self, part: Range, number: int) -> None:
        """Return at once, or raise ReleasedError."""
        _check_goes_on(self.path)


@dataclass(frozen=True)
class DemandGate:
    """Holds back the shards of one long range until the run comes near them."""

    path: str
    sources: int
    ahead: int

    def wait(self, part: Range, number: int) -> None:
        """Return once shard `number` of the range is at most `ahead` of what was asked for."""
        _check_goes_on(self.path)
        while number >= self.ahead:
            reached = read_reached(self.path, self.sources)
            if reached.is_near(part.source, (part.number, number), self.ahead):
                return
            time.sleep(_SECONDS)
            _check_goes_on(self.path)


class ReleasedError(FtrayError):
    """A run has ended before a range of its data was through: what is made of it is good."""


def _check_goes_on(path: str) -> None:
    if storage.read_if_exists(path) == _RELEASED:
        raise ReleasedError("the run needs no more token shards")


_RELEASED = b"null"
_SECONDS = 1.0
_LOOK_SECONDS = 0.2
_REMOTE_LOOK_SECONDS = 2.0
