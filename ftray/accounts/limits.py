"""Limits in requests and tokens a minute: how much is left, and how long to wait for more.

A sliding window over two minutes of the clock: what was taken in this minute counts wholly, what
was taken in the one before by the share of it that lies less than 60 seconds back. Two numbers a
key are enough, which all serving processes can add to. On average nobody gets more than the limit;
in the worst minute, as with a token bucket of the same size, just under twice as much.
"""

from dataclasses import dataclass

MINUTE = 60.0


@dataclass(frozen=True)
class Allowance:
    """One limit as its key stands now."""

    limit: int
    remaining: int
    reset: float  # seconds until all are there again


@dataclass(frozen=True)
class Window:
    """What was taken of one limit in this minute of the clock and in the one before."""

    limit: int
    before: int
    this: int
    now: float  # unix seconds

    def allowance(self) -> Allowance:
        """Say what is left, in whole requests or tokens."""
        left = int(self.limit - self._taken())
        return Allowance(self.limit, max(0, min(self.limit, left)), self._reset())

    def wait(self, need: int) -> float | None:
        """Seconds until so much more may be taken: 0 is now, None never."""
        if need > self.limit:
            return None
        if self._taken() + need <= self.limit:
            return 0.0
        free = self.limit - need
        if self.this <= free:
            # enough when (1 - passed) × before has fallen to what this minute leaves free
            return self._until(1 - (free - self.this) / self.before)
        return self._until(2 - free / self.this)

    def _taken(self) -> float:
        return self.this + self.before * (1 - self._passed())

    def _passed(self) -> float:
        """The share of this minute that has passed."""
        return self.now % MINUTE / MINUTE

    def _until(self, minutes: float) -> float:
        """Seconds until a point counted in minutes from the beginning of this one."""
        return max(0.0, (minutes - self._passed()) * MINUTE)

    def _reset(self) -> float:
        if self.this > 0:
            return self._until(2)
        return self._until(1) if self.before > 0 else 0.0
