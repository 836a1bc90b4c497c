"""Aliases of an adapter's versions: each move is a file of its own, the highest number holds."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ftray import storage
from ftray.errors import RegistryError
from ftray.records import Record, encode, read_record
from ftray.registry.versions import folder_of, numbered, numbers_in


@dataclass(frozen=True)
class Target:
    """A version that an alias points at, and its share of the requests."""

    version: int
    weight: int = 1


@dataclass(frozen=True, kw_only=True)
class Pointer(Record):
    """One move of an alias: where it points from then on.

    `version` is the first target's, which is all that an older ftray reads.
    """

    version: int
    time: float
    split: tuple[Target, ...] = ()  # empty: all to `version`
    shadow: int | None = None  # gets a copy of each request
    repeats: int | None = None  # the number of the move that this one has gone back to

    @property
    def targets(self) -> tuple[Target, ...]:
        """The versions that requests go to."""
        return self.split or (Target(self.version),)

    @property
    def versions(self) -> set[int]:
        """All versions that are in use."""
        shadows = set() if self.shadow is None else {self.shadow}
        return {target.version for target in self.targets} | shadows


def choose(targets: Sequence[Target], key: str) -> int:
    """Return the version that a key gets: always the same, as long as the weights are the same.

    A key stays with a later target when that one's share grows.
    """
    total = sum(target.weight for target in targets)
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64 * total
    for target in targets:
        share -= target.weight
        if share < 0:
            return target.version
    return next(target.version for target in reversed(targets) if target.weight)  # rounding


def aliases(root: str, name: str) -> dict[str, int]:
    """Return the version that each alias of an adapter points at, of a split one the first."""
    found = storage.names(storage.join(folder_of(root, name), "aliases"))
    pointers = {alias: pointer_of(root, name, alias) for alias in found}
    return {alias: pointer.version for alias, pointer in pointers.items() if pointer is not None}


def pointer_of(root: str, name: str, alias: str) -> Pointer | None:
    """Return where an alias points; None: there is no such alias."""
    folder = _alias_folder(root, name, alias)
    last = max(numbers_in(folder), default=0)
    return _read(folder, last) if last else None


def move(
    root: str,
    name: str,
    alias: str,
    targets: tuple[Target, ...],
    *,
    shadow: int | None = None,
    expect: int | None = None,
) -> Pointer:
    """Let an alias point elsewhere; `expect` is the version that it is believed to point at."""
    folder = _alias_folder(root, name, alias)

    def next_move(last: int) -> Pointer:
        if expect is not None:
            _refuse_unless(expect, pointer_of(root, name, alias), name, alias)
        several = targets if len(targets) > 1 else ()
        first = targets[0].version
        return Pointer(version=first, time=time.time(), split=several, shadow=shadow)

    return _append(folder, next_move)


def roll_back(root: str, name: str, alias: str) -> Pointer:
    """Let an alias point where it did before its last move that was no rollback."""
    folder = _alias_folder(root, name, alias)

    def next_move(last: int) -> Pointer:
        held = _read(folder, last)
        before = (held.repeats or last) - 1 if held else 0
        earlier = _read(folder, before) if before else None
        if earlier is None:
            raise RegistryError(
                f"alias '{alias}' of '{name}' has not pointed elsewhere before",
                f"ftray adapters show {name}",
            )
        for version in sorted(earlier.versions):
            numbered(root, name, version)
        return replace(earlier, time=time.time(), repeats=earlier.repeats or before)

    return _append(folder, next_move)


def _append(folder: str, next_move: Callable[[int], Pointer]) -> Pointer:
    """Write the next move; of several writers one wins, and the others think anew."""
    while True:
        last = max(numbers_in(folder), default=0)
        pointer = next_move(last)
        if storage.create(storage.join(folder, f"{last + 1}.json"), encode(pointer)):
            return pointer


def _read(folder: str, number: int) -> Pointer | None:
    return read_record(storage.join(folder, f"{number}.json"), Pointer)


def _refuse_unless(expect: int, pointer: Pointer | None, name: str, alias: str) -> None:
    found = pointer.version if pointer else 0
    if found != expect:
        states = ["does not exist" if v == 0 else f"points at version {v}" for v in (found, expect)]
        raise RegistryError(
            f"alias '{alias}' of '{name}' {states[0]}; expected: it {states[1]}",
            f"ftray adapters show {name}",
        )


def _alias_folder(root: str, name: str, alias: str) -> str:
    return storage.join(folder_of(root, name), "aliases", alias)
