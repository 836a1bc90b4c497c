"""Who needs a piece, and why one that nobody needs may go. Pure: times and states are given."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ftray.data.tokens.manifest import MANIFEST
from ftray.garbage.pieces import Piece
from ftray.registry import CLAIM
from ftray.runs import State
from ftray.storage import RECORD

HOUR = 3600.0
DAY = 24 * HOUR


@dataclass(frozen=True)
class Policy:
    """What is kept that could be made again: what was used in the last `keep_seconds`.

    `named` are runs whose checkpoints may go too once they have been silent for as long.
    """

    keep_seconds: float
    named: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Need:
    """What a run or a search stands for.

    `tokens` are its token sets, None before it has said which, as searches never do; `published`
    names who has published what came of it, the run or its search; `uploads` are the folders below
    `uploads/` that its config names.
    """

    state: State
    heard_of: float  # unix seconds
    tokens: frozenset[str] | None
    published: Literal["run", "search"] | None
    uploads: frozenset[str] = frozenset()

    @property
    def is_working(self) -> bool:
        """Whether a process is at it."""
        return self.state in ("queued", "running")


@dataclass(frozen=True)
class Known:
    """What the database of a service knows of the names in `files/` and `jobs/`."""

    names: frozenset[str]
    needed: frozenset[str]  # of these: by a file, or by a job that has not ended


@dataclass(frozen=True)
class Needs:
    """What runs and searches need, by their names, and what the service does, if there is one."""

    runs: Mapping[str, Need]
    known: Known | None = None


def why_it_may_go(piece: Piece, needs: Needs, policy: Policy, now: float) -> str | None:
    """Say why a piece may go, None if it stays."""
    match piece.kind:
        case "tokens" if piece.run is None:
            return _of_tokens(piece, needs.runs, policy, now)
        case "tokens" | "checkpoints" | "trial states":
            need = needs.runs.get(piece.run or "")
            return None if need is None else _of_a_run(piece, need, policy, now)
        case "files" | "jobs":
            return _of_the_service(piece, needs.known, policy, now)
        case "uploads":
            return _of_uploads(piece, needs.runs, policy, now)
        case "adapters":
            is_torn = RECORD not in piece.names and piece.names != {CLAIM}
            return "never completed" if is_torn and _is_older(piece.changed, DAY, now) else None
        case "leftovers":
            return "a write that was cut off" if _is_older(piece.changed, DAY, now) else None
        case "shard copies":
            seconds = max(HOUR, policy.keep_seconds)  # who has just fetched one will open it
            return "not read lately" if _is_older(piece.used, seconds, now) else None
    return None


def _of_tokens(piece: Piece, needs: Mapping[str, Need], policy: Policy, now: float) -> str | None:
    """Tokens are made again when they are needed: to delete them costs time, not data."""
    users = [need for need in needs.values() if piece.name in (need.tokens or ())]
    may_take_it = [need for need in needs.values() if need.is_working and need.tokens is None]
    if any(need.is_working for need in users) or may_take_it:
        return None
    if not users and MANIFEST not in piece.names:
        return "never completed" if _is_older(piece.changed, DAY, now) else None
    last = max([piece.used, *(need.heard_of for need in users)])
    # within an hour somebody may go on reading it: `ftray data check`, a run that counts as lost
    if not _is_older(last, max(HOUR, policy.keep_seconds), now):
        return None
    if not users:
        return "no run uses it"
    if all(need.state == "succeeded" for need in users):
        return "only finished runs use it"
    return "only silent runs use it: made again if one goes on"


def _of_a_run(piece: Piece, need: Need, policy: Policy, now: float) -> str | None:
    """A run that did not finish can go on: what it needs for that stays, unless it is named."""
    if need.is_working:
        return None
    is_torn = piece.kind != "tokens" and RECORD not in piece.names
    if is_torn and _is_older(piece.changed, DAY, now):
        return "never completed"
    if need.published is not None:
        return f"its {need.published} has published its adapter"
    last = max(piece.changed, need.heard_of)
    if piece.run in policy.named and _is_older(last, policy.keep_seconds, now):
        return "its run was named"
    return None


def _of_the_service(piece: Piece, known: Known | None, policy: Policy, now: float) -> str | None:
    if known is None or piece.name in known.needed:
        return None
    is_file = piece.kind == "files"
    # of a job that has ended its end is told for a while
    seconds = DAY if is_file else max(DAY, policy.keep_seconds)
    why = "no file and no job needs it" if is_file else "its job has ended"
    return why if _is_older(piece.changed, seconds, now) else None


def _of_uploads(piece: Piece, needs: Mapping[str, Need], policy: Policy, now: float) -> str | None:
    """A job that waits for its cluster has no run yet: what was asked for lately stays."""
    users = {name: need for name, need in needs.items() if piece.name in need.uploads}
    for name, need in users.items():
        if need.is_working or (need.published is None and name not in policy.named):
            return None
    last = max([piece.used, *(need.heard_of for need in users.values())])
    if not _is_older(last, max(DAY, policy.keep_seconds), now):
        return None
    return "no run goes on with it" if users else "no run uses it"


def _is_older(moment: float, seconds: float, now: float) -> bool:
    return now - moment >= seconds
