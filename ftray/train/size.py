"""How many workers the next group of an elastic run has: what there is room for, within a range."""

import time

from ftray import cluster
from ftray.cluster import Allotment, Node
from ftray.config.run import ScalingConfig

_PLACE_SECONDS = 15.0  # a node that died may be counted on for that long
_SETTLE_SECONDS = 30.0  # a group trains at least so long before it makes way for a larger one
_PATIENCE_SECONDS = 300.0  # before a number that found no place is tried again


class Size:
    """The number of workers now; of a run that is not elastic it never changes."""

    def __init__(self, scaling: ScalingConfig, allotment: Allotment) -> None:
        self.scaling = scaling
        self._most = scaling.most_workers
        self._most_until = 0.0
        self._since = time.monotonic()
        self.now = allotment

    @property
    def timeout_seconds(self) -> float:
        """How long the workers may take to be placed: not long where fewer would do."""
        seconds = self.scaling.placement_timeout_seconds
        could_shrink = self.now.workers > self.scaling.least_workers
        return min(seconds, _PLACE_SECONDS) if could_shrink else seconds

    def fit(self, machines: list[Node]) -> None:
        """Take as many workers as the machines can hold."""
        self.now = self._best(machines)
        self._since = time.monotonic()

    def shrink(self) -> bool:
        """Take fewer workers than found no place; False when it was the least number."""
        if self.now.workers <= self.scaling.least_workers:
            return False
        self._most, self._most_until = self.now.workers - 1, time.monotonic() + _PATIENCE_SECONDS
        self.fit(cluster.nodes())
        return True

    def could_grow(self, machines: list[Node]) -> bool:
        """Whether there is room for more workers, for long enough to be worth a restart."""
        if time.monotonic() - self._since < _SETTLE_SECONDS:
            return False
        wanted = self._best(machines)
        return wanted.workers > self.now.workers and cluster.has_room_for(wanted, self.now)

    def _best(self, machines: list[Node]) -> Allotment:
        if self.scaling.most_workers == self.scaling.least_workers:
            return self.now
        if time.monotonic() > self._most_until:
            self._most = self.scaling.most_workers
        return cluster.allot(self.scaling, machines, self._most)
