"""Watches the workers of a group from Ray Train's controller, and fails the group when it hangs."""

import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.worker_group import (
    Worker,
    WorkerGroup,
    WorkerGroupPollStatus,
)

from ftray.train.pulse import Limits, Pulse, Seen, feel, hung

_ASK_SECONDS = 1.0
_SILENT_SECONDS = 5.0  # a busy machine may let a healthy worker wait that long


class Watchdog(WorkerGroupCallback):
    """Asks every worker for its pulse once a second; a process that was stopped cannot answer."""

    def __init__(self, step_timeout: float | None) -> None:
        self._limit = Limits(step_timeout).other
        self._watched: list[_Watched] = []
        self._asked_at = 0.0

    def after_worker_group_start(self, worker_group: WorkerGroup) -> None:
        """Begin to watch."""
        now, start = time.monotonic(), Pulse("starting", 0.0, self._limit)
        workers = enumerate(worker_group.get_workers())  # in the order of their ranks
        self._watched = [_Watched(rank, worker, start, now) for rank, worker in workers]

    def after_worker_group_poll_status(self, worker_group_status: WorkerGroupPollStatus) -> None:
        """Take what was answered, ask again, and raise HungError when nobody gets on."""
        now = time.monotonic()
        for watched in self._watched:
            watched.take(now)
        if error := hung([watched.seen(now) for watched in self._watched], _SILENT_SECONDS):
            for watched in self._watched:  # else Ray waits 30 s for each to take leave
                ray.kill(watched.worker.actor)
            raise error
        if now - self._asked_at > _ASK_SECONDS:
            self._asked_at = now
            for watched in self._watched:
                watched.ask()

    def before_worker_group_shutdown(self, worker_group: WorkerGroup) -> None:
        """Watch no more: what is killed does not answer."""
        self._watched = []


@dataclass
class _Watched:
    rank: int
    worker: Worker
    pulse: Pulse
    at: float
    answer: Any = None  # a reference to a Pulse on its way

    def ask(self) -> None:
        if self.answer is None:
            self.answer = self.worker.execute_async(feel)

    def take(self, now: float) -> None:
        if self.answer is None or not ray.wait([self.answer], timeout=0)[0]:
            return
        answer, self.answer = self.answer, None
        try:
            self.pulse, self.at = ray.get(answer), now
        except ray.exceptions.RayError:
            return  # it died: the controller sees that by itself

    def seen(self, now: float) -> Seen:
        where = self.worker.metadata
        name = f"worker {self.rank} (pid {where.pid} on {where.node_ip})"
        return Seen(name, self.pulse, now - self.at)
