"""How far a run has come in its shards: told by its first worker, read by who makes them."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    """By source: the first shard that is still needed, and the last one that was asked for."""

    first: list[Shard | None]
    last: list[Shard | None]


class Demand:
    """Writes down which shards are needed, at once when one is waited for."""

    def __init__(self, path: str, sources: int) -> None:
        self._path = path
        self._first: list[Shard | None] = [None] * sources
        self._last: list[Shard | None] = [None] * sources
        self._written_at = 0.0

    def needs_from(self, first: Sequence[Shard | None]) -> None:
        """Say what training needs now: earlier shards may go."""
        if list(first) != self._first:
            self._first = list(first)
            self._write()

    def asks_for(self, source: int, shard: Shard, *, waits: bool) -> None:
        """Say that a shard was asked for."""
        self._last[source] = shard
        is_known = any(self._first)  # before, a restarted run goes through what it has behind it
        if waits or (is_known and time.monotonic() - self._written_at > _SECONDS):
            self._write()

    def _write(self) -> None:
        self._written_at = time.monotonic()
        tree = {"first": self._first, "last": self._last}
        storage.write(self._path, json.dumps(tree).encode())


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
class DemandGate:
    """Holds back the shards of one long range until the run comes near them."""

    path: str
    sources: int
    ahead: int

    def wait(self, part: Range, number: int) -> None:
        """Return once shard `number` of the range is at most `ahead` of what was asked for."""
        while number >= self.ahead:
            if storage.read_if_exists(self.path) == _RELEASED:
                raise DataError("the run needs no more token shards")
            asked = read_reached(self.path, self.sources).last[part.source]
            if asked is not None and asked[0] == part.number and number <= asked[1] + self.ahead:
                return
            time.sleep(_SECONDS)


_RELEASED = b"null"
_SECONDS = 1.0
_LOOK_SECONDS = 0.2
_REMOTE_LOOK_SECONDS = 2.0
