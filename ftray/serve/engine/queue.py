"""Who comes next: generations wait in lanes, one for each owner and adapter."""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from ftray.serve.engine.job import Job, Row


@dataclass
class Shares:
    """Rows in the batch now, by owner and by adapter."""

    owners: Counter[str] = field(default_factory=Counter)
    adapters: Counter[str | None] = field(default_factory=Counter)


@dataclass(frozen=True)
class Turn:
    """A generation may have so many rows now."""

    job: Job
    rows: int


class FairQueue:
    """First come, first served within a lane; round robin over owners, and over their adapters.

    While others wait, an owner gets no more rows than an equal share of them, and so an adapter.
    """

    def __init__(self) -> None:
        self._owners: dict[str, dict[str | None, deque[Job]]] = {}

    def add(self, job: Job) -> None:
        """Put a new generation at the end of its lane."""
        wish = job.generation
        self._owners.setdefault(wish.owner, {}).setdefault(wish.adapter, deque()).append(job)

    def put_back(self, row: Row) -> None:
        """Put a choice that lost its place at the very front."""
        job, wish = row.job, row.job.generation
        if not job.waiting:
            lanes = self._owners.pop(wish.owner, {})
            lane = lanes.pop(wish.adapter, deque())
            lane.appendleft(job)
            self._owners = {wish.owner: {wish.adapter: lane, **lanes}, **self._owners}
        job.waiting.appendleft(row)

    def next(self, shares: Shares, rows: int) -> Turn | None:
        """Whose turn it is, given who has rows of `rows` already; it stays until `advance`."""
        owners = len({*self._owners, *shares.owners})
        adapters = len({*shares.adapters, *(a for lanes in self._owners.values() for a in lanes)})
        by_owner, by_adapter = -(-rows // max(owners, 1)), -(-rows // max(adapters, 1))
        best: tuple[int, Job] | None = None
        for owner, lanes in self._owners.items():
            for adapter, lane in lanes.items():
                excess = 2 * (shares.owners[owner] >= by_owner)
                excess += shares.adapters[adapter] >= by_adapter
                if best is None or excess < best[0]:
                    best = (excess, lane[0])
        if best is None:
            return None
        wish = best[1].generation
        left = min(by_owner - shares.owners[wish.owner], by_adapter - shares.adapters[wish.adapter])
        return Turn(best[1], max(left, 1))

    def advance(self, job: Job) -> None:
        """The turn of this job's owner and adapter is over; without waiting choices it leaves."""
        wish = job.generation
        if not job.waiting:
            self.remove(job)
        if lanes := self._owners.pop(wish.owner, None):
            if lane := lanes.pop(wish.adapter, None):
                lanes[wish.adapter] = lane
            self._owners[wish.owner] = lanes

    def remove(self, job: Job) -> None:
        """Forget a generation, wherever it stands."""
        wish = job.generation
        lanes = self._owners.get(wish.owner, {})
        lane = lanes.get(wish.adapter, deque())
        if job in lane:
            lane.remove(job)
        if not lane:
            lanes.pop(wish.adapter, None)
        if not lanes:
            self._owners.pop(wish.owner, None)

    def __iter__(self) -> Iterator[Job]:
        lanes = [lane for lanes in self._owners.values() for lane in lanes.values()]
        return iter([job for lane in lanes for job in lane])

    def __len__(self) -> int:
        return sum(len(lane) for lanes in self._owners.values() for lane in lanes.values())
