"""The pulse of a worker: what it does now and how long that may take; and when a group is hung."""

import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from ftray.errors import TrainError

_LEAST_SECONDS = 300.0  # a step that waits for a busy network or disk is not hung
_TIMES_THE_MEDIAN = 20
_FIRST_SECONDS = 3600.0  # a large model has to be loaded, perhaps compiled
_TIMES_A_STEP = 10


class HungError(TrainError):
    """No worker of a group got on: one has stopped, or all wait for each other."""


@dataclass(frozen=True)
class Pulse:
    """What a worker is doing, for how long by now, and after how long it is hung."""

    doing: str
    seconds: float
    limit: float


@dataclass(frozen=True)
class Seen:
    """The last pulse that a worker answered with, and how long ago that was."""

    worker: str
    pulse: Pulse
    ago: float

    @property
    def is_late(self) -> bool:
        """Whether what it was doing should be over."""
        return self.pulse.seconds + self.ago > self.pulse.limit


class Limits:
    """How long steps may take: as configured, else as the measured ones suggest."""

    def __init__(self, configured: float | None) -> None:
        self._configured = configured
        self._measured: deque[float] = deque(maxlen=50)

    @property
    def step(self) -> float:
        """Seconds for a step of the usual kind."""
        if not self._measured:
            return self.other
        if self._configured is not None:
            return self._configured
        return max(_LEAST_SECONDS, _TIMES_THE_MEDIAN * statistics.median(self._measured))

    @property
    def other(self) -> float:
        """Seconds for all else: a first step, waiting for data, an evaluation, a checkpoint."""
        if self._configured is not None:
            return _TIMES_A_STEP * self._configured
        return max(_FIRST_SECONDS, _TIMES_A_STEP * _LEAST_SECONDS)

    def measured(self, seconds: float) -> None:
        """Take the duration of a finished step."""
        self._measured.append(seconds)


def begin(doing: str, limit: float) -> None:
    """Say what this worker does from now on, and how many seconds that may take."""
    _NOW[:] = [(doing, time.monotonic(), limit)]


def feel() -> Pulse:
    """Return this process's pulse; Ray calls it in the main thread, beside the training."""
    doing, began, limit = _NOW[0]
    return Pulse(doing, time.monotonic() - began, limit)


_NOW = [("starting", time.monotonic(), _FIRST_SECONDS)]


def hung(workers: Sequence[Seen], silent_after: float) -> HungError | None:
    """Say that a group hangs, and on whom, or None while it may still get on.

    One late worker may be waiting for another that has good reason to take long: only when all are
    late does nobody get on. A worker that no longer answers has stopped, and has no good reason:
    it counts as late as soon as another one waits for it.
    """
    silent = [seen for seen in workers if seen.ago > silent_after]
    late = [seen for seen in workers if seen.is_late]
    if not late or any(seen not in silent and seen not in late for seen in workers):
        return None
    stuck = silent or [seen for seen in workers if seen.pulse.doing == workers[0].pulse.doing]
    first = stuck[0]
    seconds = first.pulse.seconds + first.ago
    who = ", ".join(seen.worker for seen in stuck)
    state = "gave no answer" if silent else "got no further"
    return HungError(f"{first.pulse.doing} hangs since {seconds:.0f} s: {who} {state}")
