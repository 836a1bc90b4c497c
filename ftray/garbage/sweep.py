"""The disk that a storage root takes, and the deleting of what nobody needs."""

import logging
import re
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal, Protocol, get_args

from ftray import registry, runs, searches, storage
from ftray.errors import RegistryError, StorageError
from ftray.garbage.pieces import Kind, Piece, piece_at, pieces
from ftray.garbage.policy import Known, Need, Needs, Policy, why_it_may_go
from ftray.registry import CLAIM
from ftray.runs import Run, Status
from ftray.searches import Search, SearchStatus

logger = logging.getLogger(__name__)


class Books(Protocol):
    """The database of the service whose files lie in a storage root."""

    def known(self) -> Known:
        """Return what it knows now."""
        ...

    def drop(self, name: str) -> bool:
        """Delete a file's bytes, unless somebody needs them by now: no upload may come between."""
        ...


@dataclass(frozen=True)
class Total:
    """How much there is of a kind, and how much of it may go; sizes in bytes."""

    kind: Kind
    count: int
    size: int
    may_go: int
    may_go_size: int


@dataclass(frozen=True)
class Garbage:
    """A piece that may go, or has gone."""

    kind: Kind
    path: str
    run: str | None
    size: int
    used: float  # unix seconds
    why: str


@dataclass(frozen=True)
class Stayed:
    """A piece that was to go, and did not."""

    path: str
    why: str
    is_error: bool


@dataclass(frozen=True)
class Disk:
    """What a storage root holds; of what may go the largest first."""

    root: str
    totals: list[Total]
    may_go: list[Garbage]
    gone: list[Garbage]
    stayed: list[Stayed]

    @property
    def freed(self) -> int:
        """Bytes that were deleted."""
        return sum(garbage.size for garbage in self.gone)


def look(root: str, policy: Policy, books: Books | None = None) -> Disk:
    """Measure what a root holds and find out what may go; deletes nothing.

    Without books nothing of the service's goes. Raises ConfigError when a run that the policy names
    does not exist.
    """
    for name in policy.named:
        runs.read_status(Run(root, name))
    found, needs, now = pieces(root), _needs(root, books), time.time()
    if not _are_its_own(found, needs.known):
        needs = replace(needs, known=None)
    may_go = [
        Garbage(piece.kind, piece.path, piece.run, piece.size, piece.used, why)
        for piece in found
        if (why := why_it_may_go(piece, needs, policy, now)) is not None
    ]
    may_go.sort(key=lambda garbage: garbage.size, reverse=True)
    return Disk(root, _totals(found, may_go), may_go, [], [])


def sweep(disk: Disk, policy: Policy, books: Books | None = None) -> Disk:
    """Delete what was found to be garbage, unless it is needed by now, and say what went.

    What cannot be deleted stays, with the reason; the rest goes all the same.
    """
    gone: list[Garbage] = []
    stayed: list[Stayed] = []
    needs = _FreshNeeds(disk.root, books)
    for garbage in disk.may_go:
        try:
            if not _is_needed(garbage, needs, policy) and _delete(garbage, books):
                gone.append(garbage)
            else:
                stayed.append(Stayed(garbage.path, "needed by now", is_error=False))
        except StorageError as error:
            stayed.append(Stayed(garbage.path, error.message, is_error=True))
    return replace(disk, gone=gone, stayed=stayed)


def _are_its_own(found: Sequence[Piece], known: Known | None) -> bool:
    """Whether this is the database that those files are of: it knows some of them."""
    names = {piece.name for piece in found if piece.kind in ("files", "jobs")}
    if known is None or not names or names & known.names:
        return True
    logger.warning(
        "the database knows nothing of the %d names in files/ and jobs/, which stay:"
        " set FTRAY_DATABASE to the one that the service uses",
        len(names),
    )
    return False


def _totals(found: Sequence[Piece], may_go: Sequence[Garbage]) -> list[Total]:
    totals = []
    for kind in get_args(Kind):
        own = [piece for piece in found if piece.kind == kind]
        going = [garbage.size for garbage in may_go if garbage.kind == kind]
        count = sum(piece.is_whole for piece in own)
        size = sum(piece.size for piece in own)
        totals.append(Total(kind, count, size, len(going), sum(going)))
    return totals


def _is_needed(garbage: Garbage, needs: "_FreshNeeds", policy: Policy) -> bool:
    if garbage.kind == "leftovers":
        return False  # nobody goes on with a write that was cut off
    piece = piece_at(garbage.path, garbage.kind, garbage.run)
    return why_it_may_go(piece, needs.now(), policy, time.time()) is None


def _delete(garbage: Garbage, books: Books | None) -> bool:
    if garbage.kind == "files" and books is not None:
        return books.drop(PurePosixPath(garbage.path).name)
    # a version's number is never given out again
    storage.delete(garbage.path, keep=CLAIM if garbage.kind == "adapters" else None)
    return True


class _FreshNeeds:
    """What the runs need now, give or take the seconds that reading hundreds of them takes."""

    def __init__(self, root: str, books: Books | None) -> None:
        self._root = root
        self._books = books
        self._read_at = float("-inf")
        self._needs = Needs({})

    def now(self) -> Needs:
        """Read them again unless they have just been read."""
        if time.monotonic() - self._read_at > _FRESH_SECONDS:
            self._needs = _needs(self._root, self._books)
            self._read_at = time.monotonic()
        return self._needs


_FRESH_SECONDS = 0.2


def _needs(root: str, books: Books | None) -> Needs:
    return Needs(_needs_of_runs(root), None if books is None else books.known())


def _needs_of_runs(root: str) -> dict[str, Need]:
    found = searches.list_searches(root)
    ended = {name for name, status in found.items() if _is_published(root, status)}
    of_runs = {
        name: _need(Run(root, name), status, ended) for name, status in runs.list_runs(root).items()
    }
    return of_runs | {
        f"searches/{name}": Need(
            status.state,
            status.heartbeat,
            None,
            "search" if name in ended else None,
            _uploads(Search(root, name).folder, "run.yaml", "space.yaml"),
        )
        for name, status in found.items()
    }


def _need(run: Run, status: Status, searches_ended: Set[str]) -> Need:
    known = runs.read_data(run)
    tokens = None if known is None else frozenset(digest for digest in known.values() if digest)
    published: Literal["run", "search"] | None = None
    if _is_published(run.root, status):
        published = "run"
    elif searches.search_of(run.name) in searches_ended:
        published = "search"
    uploads = _uploads(run.folder, "run.yaml")
    return Need(status.state, status.heartbeat, tokens, published, uploads)


def _uploads(folder: str, *names: str) -> frozenset[str]:
    """Return which uploads some config files name, whatever ftray wrote them."""
    texts = [storage.read_if_exists(storage.join(folder, name)) or b"" for name in names]
    return frozenset(name for text in texts for name in _UPLOAD.findall(text.decode()))


_UPLOAD = re.compile(r"/uploads/([0-9a-f]{64})(?![0-9a-f])")


def _is_published(root: str, status: Status | SearchStatus) -> bool:
    return status.state == "succeeded" and _is_there(root, status.adapter)


def _is_there(root: str, ref: str | None) -> bool:
    try:
        return ref is not None and registry.resolve(root, ref).ref == ref
    except RegistryError:
        return False
