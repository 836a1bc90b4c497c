"""Rates: what keys take of their limits, in this process and, a second later, in all of them.

A request is admitted by what this process knows: what all had taken at the last exchange through
the database, and what it took itself since. So several processes give out one limit together, and
exceed it by at most what they admit between two exchanges.
"""

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ftray.accounts.database import Database
from ftray.accounts.grant import Key
from ftray.accounts.limits import MINUTE, Allowance, Window
from ftray.accounts.tables import TakingRow
from ftray.accounts.tally import Count, Tally


class Taking(NamedTuple):
    """Whose and of which minute of the clock (unix seconds // 60) a count is."""

    key: str
    minute: int


@dataclass(frozen=True)
class Admission:
    """Whether a request may go on; matches `ftray.serve.openai.access`."""

    refusal: str = ""
    wait: float | None = None
    requests: Allowance | None = None
    tokens: Allowance | None = None


class Rates:
    """The windows of the keys that have limits; `admit` and `settle` do no I/O."""

    def __init__(self) -> None:
        self._tally: Tally[Taking] = Tally()
        self._shared: Mapping[Taking, Count] = {}
        self._reserved: defaultdict[tuple[str, int], deque[int]] = defaultdict(deque)

    def admit(self, key: Key, tokens: int, now: float) -> Admission:
        """Count a request and reserve tokens; what is refused is not counted."""
        windows = self._windows(key, now)
        needs = {"requests": 1, "tokens": tokens}
        waits = {of: window.wait(needs[of]) for of, window in windows.items()}
        longest = max((wait for wait in waits.values() if wait is not None), default=0.0)
        if None in waits.values():
            return _admission(windows, _too_large(key, tokens), None)
        if longest > 0:
            full = [f"{windows[of].limit:,} {of}" for of, wait in waits.items() if wait]
            return _admission(windows, _too_many(full, longest), longest)
        if windows:
            minute = int(now // MINUTE)
            self._tally.add(Taking(key.id, minute), Count(1, tokens))
            self._reserved[key.id, tokens].append(minute)
        return _admission(self._windows(key, now))

    def settle(self, key: str, reserved: int, taken: int, now: float) -> None:
        """Give back what was reserved and not taken, or count what was taken beyond that."""
        minutes = self._reserved.get((key, reserved))
        if not minutes:
            return  # the key had no limits
        minute, current = minutes.popleft(), int(now // MINUTE)
        if not minutes:
            del self._reserved[key, reserved]
        if taken > reserved:
            self._tally.add(Taking(key, current), Count(0, taken - reserved))
        elif minute >= current - 1:  # what was reserved earlier counts no more
            self._tally.add(Taking(key, minute), Count(0, taken - reserved))

    def take(self) -> Mapping[Taking, Count]:
        """What the other processes don't know yet; `arrived` or `returned` has to follow."""
        return self._tally.take()

    def arrived(self, shared: Mapping[Taking, Count]) -> None:
        """Go on from what all processes have taken, which now includes what this one sent."""
        self._shared = shared
        self._tally.arrived()

    def returned(self) -> None:
        """Nothing could be exchanged."""
        self._tally.returned()

    def _windows(self, key: Key, now: float) -> dict[str, Window]:
        """The windows of the limits that a key has."""
        before, this = self._counts(key, now)
        found: dict[str, Window] = {}
        if (limit := key.requests_per_minute) is not None:
            found["requests"] = Window(limit, before.requests, this.requests, now)
        if (limit := key.tokens_per_minute) is not None:
            found["tokens"] = Window(limit, before.tokens, this.tokens, now)
        return found

    def _counts(self, key: Key, now: float) -> tuple[Count, Count]:
        minute = int(now // MINUTE)
        takings = (Taking(key.id, minute - 1), Taking(key.id, minute))
        # the tally first: what arrives in between counts twice for a moment, and never not at all
        before, this = (self._tally.count(t) + self._shared.get(t, Count()) for t in takings)
        return before, this


def exchange(
    session: Session, database: Database, taken: Mapping[Taking, Count], now: float
) -> Mapping[Taking, Count]:
    """Add to what all processes have taken, and return it, of this minute and the one before."""
    before = int(now // MINUTE) - 1
    new = database.insert(TakingRow)
    sums = {
        "requests": TakingRow.requests + new.excluded.requests,
        "tokens": TakingRow.tokens + new.excluded.tokens,
    }
    add = new.on_conflict_do_update(index_elements=["key", "minute"], set_=sums)
    rows = [
        {**taking._asdict(), "requests": count.requests, "tokens": count.tokens}
        for taking, count in sorted(taken.items())  # one order in all processes: no deadlock
    ]
    if rows:
        session.connection().execute(add, rows)
        session.execute(sa.delete(TakingRow).where(TakingRow.minute < before - _KEPT))
    current = sa.select(TakingRow).where(TakingRow.minute >= before)
    found = session.scalars(current)
    return {Taking(row.key, row.minute): Count(row.requests, row.tokens) for row in found}


_KEPT = 10  # minutes; nobody reads them, but clocks differ


def _admission(
    windows: Mapping[str, Window], refusal: str = "", wait: float | None = None
) -> Admission:
    left = {of: window.allowance() for of, window in windows.items()}
    return Admission(refusal, wait, left.get("requests"), left.get("tokens"))


def _too_large(key: Key, tokens: int) -> str:
    return (
        f"This request may take {tokens:,} tokens, and the limit of its key is "
        f"{key.tokens_per_minute:,} a minute: shorten the prompt or lower max_tokens."
    )


def _too_many(full: list[str], wait: float) -> str:
    return (
        f"The key's limit of {' and '.join(full)} a minute is reached: try again in {wait:.1f} s."
    )
