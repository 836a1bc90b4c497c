"""What a storage root holds, in pieces: each is judged, and may go, as a whole."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal

from huggingface_hub import constants

from ftray import storage
from ftray.storage.entry import Held

Kind = Literal[
    "tokens",
    "runs",
    "checkpoints",
    "searches",
    "trial states",
    "adapters",
    "files",
    "jobs",
    "uploads",
    "leftovers",
    "shard copies",
    "models and copies",
    "hub models",
    "other",
]


@dataclass(frozen=True)
class Piece:
    """A token set, a checkpoint, a version of an adapter, what else lies in a run's folder, …

    `names` are those of its files, `changed` and `used` the newest times of these in unix seconds;
    `run` is the run that it lies in, or the search, with `searches/` before its name.
    """

    kind: Kind
    path: str
    run: str | None
    names: frozenset[str]
    size: int = 0
    changed: float = 0.0
    used: float = 0.0

    @property
    def name(self) -> str:
        """The last part of its path, as a digest or a version."""
        return PurePosixPath(self.path).name

    @property
    def is_whole(self) -> bool:
        """Whether it counts as one: of a deleted version only the number is left."""
        return self.kind != "adapters" or storage.RECORD in self.names


def pieces(root: str) -> list[Piece]:
    """Return all pieces of a storage root, and of what this machine keeps to work with it."""
    folders = {top: storage.join(root, top) for top in _TOPS}
    folders["cache"] = storage.local_cache(root).as_posix()
    folders["hub"] = str(constants.HF_HUB_CACHE)
    return [piece for top, folder in folders.items() for piece in _pieces(top, folder)]


_TOPS = ("tokens", "runs", "searches", "adapters", "files", "jobs", "uploads")


def piece_at(path: str, kind: Kind, run: str | None) -> Piece:
    """Look at one piece, known by its folder; without files when it is gone."""
    held = storage.contents(path)
    return _measured(Piece(kind, path, run, frozenset(file.name for file in held)), held)


def _pieces(top: str, folder: str) -> Iterator[Piece]:
    found: dict[tuple[str, ...], list[Held]] = {}
    spots: dict[tuple[str, ...], _Spot] = {}
    for held in storage.contents(folder):
        parts = tuple(held.name.split("/"))
        if (spot := _spot(top, parts)) is not None:
            found.setdefault(parts[: spot.depth], []).append(held)
            spots[parts[: spot.depth]] = spot
    for parts, files in found.items():
        spot, start = spots[parts], f"{'/'.join(parts)}/"
        names = frozenset(file.name.removeprefix(start) for file in files)
        path = storage.join(folder, *parts)
        yield _measured(Piece(spot.kind, path, spot.run, names), files)


def _measured(piece: Piece, files: Sequence[Held]) -> Piece:
    return replace(
        piece,
        size=sum(file.size for file in files),
        changed=max((file.changed for file in files), default=0.0),
        used=max((file.used for file in files), default=0.0),
    )


@dataclass(frozen=True)
class _Spot:
    """The piece that a file belongs to: the first `depth` parts of its name lead to it."""

    kind: Kind
    depth: int
    run: str | None = None


def _spot(top: str, parts: tuple[str, ...]) -> _Spot | None:
    staged = next((n for n, part in enumerate(parts, 1) if storage.is_staging_name(part)), None)
    if staged is not None and top != "hub":
        return _Spot("leftovers", staged)
    match top:
        case "tokens" | "files" | "jobs" | "uploads":
            return _Spot(top if re.fullmatch(_NAMES[top], parts[0]) else "other", 1)
        case "runs":
            return _spot_of_run(parts)
        case "searches":
            return _spot_of_search(parts)
        case "adapters":
            is_version = len(parts) > 2 and parts[1].isdecimal()
            return _Spot("adapters" if is_version else "other", 2)
        case "cache":
            return _spot_of_cache(parts)
    return _Spot("hub models", 1) if parts[0].startswith("models--") else None


_NAMES = {
    "tokens": "[0-9a-f]{32}",
    "files": r"[0-9a-f]{64}\.[a-z]+",
    "jobs": "ftjob-[A-Za-z0-9]+",
    "uploads": "[0-9a-f]{64}",
}


def _spot_of_run(parts: tuple[str, ...]) -> _Spot:
    match parts:
        case (run, "checkpoints", _, _, *_):
            return _Spot("checkpoints", 3, run)
        case (run, "tokens", digest, _, *_) if re.fullmatch(_NAMES["tokens"], digest):
            return _Spot("tokens", 3, run)
    return _Spot("runs" if len(parts) > 1 else "other", 1, parts[0])


def _spot_of_search(parts: tuple[str, ...]) -> _Spot:
    search = f"searches/{parts[0]}"
    match parts:
        case (_, "trials", _, _, _, *_):
            return _Spot("trial states", 4, search)
    return _Spot("searches" if len(parts) > 1 else "other", 1, search)


def _spot_of_cache(parts: tuple[str, ...]) -> _Spot:
    match parts:
        case ("tokens", _, _):
            return _Spot("shard copies", 2)
        case ("models", model, *_):
            # unpacked beside its place, under a name that begins with a dot, and then renamed
            return _Spot("leftovers" if model.startswith(".") else "models and copies", 2)
    return _Spot("models and copies", 1)
