"""What the end of a job's process means: done, resting, failed, or to be tried again. Pure."""

import re
from dataclasses import dataclass
from typing import Literal

from ftray.errors import ClusterError, ConfigError, DataError, StorageError

_BY_MISTAKE = {ConfigError.exit_code: "invalid_configuration", DataError.exit_code: "invalid_data"}
_PASSING = {ClusterError.exit_code, StorageError.exit_code}
_MOST_SECONDS = 300.0
_OCCUPIED = 6.0  # times as long before another look at a cluster that others use


@dataclass(frozen=True)
class End:
    """How a process ended, as far as is known."""

    exit_code: int | None  # None: it was killed or lost, and nobody knows how
    message: str  # what it said was wrong; "" if it could say nothing
    has_succeeded: bool  # whether the run has published its result
    wanted: str  # run, pause or cancel
    is_occupied: bool = False  # whether others used what it needs


@dataclass(frozen=True)
class Retrying:
    """How often, and how soon, a job is started again."""

    failures: int  # so far
    most: int
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """What becomes of the job; `retry_after` is for one that waits to be started again."""

    status: Literal["succeeded", "paused", "cancelled", "failed", "queued"]
    error: dict[str, str | None] | None = None
    retry_after: float = 0.0
    counts: bool = True  # as a failure


def judge(end: End, retrying: Retrying, data: "Data") -> Verdict:
    """Decide. What was a mistake fails at once, what may pass is tried again."""
    if end.has_succeeded:
        return Verdict("succeeded")
    if end.wanted == "cancel":
        return Verdict("cancelled")
    if end.wanted == "pause":
        return Verdict("paused")
    if end.is_occupied:
        return Verdict("queued", retry_after=retrying.seconds * _OCCUPIED, counts=False)
    is_passing = end.exit_code is None or end.exit_code in _PASSING or _is_signal(end.exit_code)
    if is_passing and retrying.failures < retrying.most:
        delay = min(_MOST_SECONDS, retrying.seconds * 2.0**retrying.failures)
        return Verdict("queued", retry_after=delay)
    return Verdict("failed", error=_error(end, data))


@dataclass(frozen=True)
class Data:
    """The names of a job's data, and the place that error texts must not tell."""

    root: str
    training: str
    validation: str | None


def _is_signal(code: int) -> bool:
    return code < 0 or code >= 128


def _error(end: End, data: Data) -> dict[str, str | None]:
    message = end.message.replace(f"{data.root}/", "").replace(data.root, "the storage root")
    if end.exit_code == DataError.exit_code:
        if found := _of_file(message, data.validation):
            return {"code": "invalid_validation_file", "param": "validation_file", "message": found}
        found = _of_file(message, data.training) or message
        return {"code": "invalid_training_file", "param": "training_file", "message": found}
    code = _BY_MISTAKE.get(end.exit_code or 0, "training_failed")
    words = message or "the job's process was lost again and again"
    return {"code": code, "param": None, "message": words}


def _of_file(message: str, blob: str | None) -> str | None:
    """Return what is wrong with a file, as `Line 12: …`; None: it is not this one."""
    if blob is None or blob not in message:
        return None
    line = re.search(rf"\S*{re.escape(blob)},? line (\d+):?\s*(.*)", message, re.DOTALL)
    if line:
        return f"Line {line[1]}: {line[2]}"
    return re.sub(rf"\S*{re.escape(blob)}:?\s*", "", message)
