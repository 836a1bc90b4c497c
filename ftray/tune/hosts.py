"""The hosts of a search, as its driver holds them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ftray import cluster
from ftray.cluster import Allotment
from ftray.errors import OccupiedError, TrainError
from ftray.train.trainer import give_back_places
from ftray.tune.floor import Figures
from ftray.tune.host import Host, HostPlan, Ready
from ftray.tune.rungs import Failed
from ftray.tune.runner import Runner, RunnerPlan

_ANSWER_SECONDS = 10.0
_CLOSE_SECONDS = 70.0  # runs save before they end


class Hosts:
    """Actors that Ray starts again when their process is killed."""

    def __init__(self, handles: list[Any]) -> None:
        self.handles = handles
        self._began = time.monotonic()
        self._loading = [handle.ready.remote() for handle in handles]
        self.loaded: list[Ready] = []

    @property
    def seconds(self) -> float:
        """What all hosts together have been held."""
        return len(self.handles) * (time.monotonic() - self._began)

    def leave(self, trial_id: str) -> None:
        """Free a trial's slot, wherever it is; nobody waits for that."""
        for handle in self.handles:
            handle.leave.remote(trial_id)

    def check(self) -> None:
        """Raise why the base cannot be loaded, as far as a host has said so by now."""
        if not self._loading:
            return
        found, self._loading = ray.wait(self._loading, num_returns=len(self._loading), timeout=0.0)
        for ref in found:
            match _answer(ref):
                case Failed(message, hint):
                    raise TrainError(message, hint)
                case Ready() as ready:
                    self.loaded.append(ready)

    def figures(self) -> list[Figures]:
        """Return what each host spent its time on; of one that does not answer nothing."""
        asked = [handle.figures.remote() for handle in self.handles]
        found, _ = ray.wait(asked, num_returns=len(asked), timeout=_ANSWER_SECONDS)
        answers = [_answer(ref) for ref in found]
        return [answer for answer in answers if isinstance(answer, Figures)]


@contextmanager
def placed(plan: HostPlan, allotment: Allotment, timeout_seconds: float) -> Iterator[Hosts]:
    """Place and start the hosts for the block's time; they load the base while it goes on.

    OccupiedError where others hold what the hosts need for longer than the timeout.
    """
    bundle = {"CPU": allotment.cpus, **({"GPU": allotment.gpus} if allotment.gpus else {})}
    group = placement_group([bundle] * allotment.workers)
    handles: list[Any] = []
    try:
        if not group.wait(timeout_seconds):
            raise OccupiedError(
                f"{allotment} could not be placed within {timeout_seconds:g} s:"
                f" {cluster.free_resources()}",
                "wait until other jobs end, or lower hosts.count in the space file",
            )
        handles = [
            ray.remote(Host)
            .options(
                num_cpus=allotment.cpus,
                num_gpus=allotment.gpus,
                max_restarts=-1,
                max_task_retries=0,
                max_concurrency=1000,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, number),
            )
            .remote(plan)
            for number in range(allotment.workers)
        ]
        yield Hosts(handles)
    finally:
        for handle in handles:
            ray.kill(handle)
        remove_placement_group(group)


@contextmanager
def started(plan: RunnerPlan, count: int) -> Iterator[Hosts]:
    """Start so many runners for the block's time, and stop what trains on them after it."""
    runner = ray.remote(Runner).options(
        num_cpus=0, max_restarts=-1, max_task_retries=0, max_concurrency=1000
    )
    handles: list[Any] = [runner.remote(plan) for _ in range(count)]
    try:
        yield Hosts(handles)
    finally:
        closed = [handle.close.remote() for handle in handles]
        ray.wait(closed, num_returns=count, timeout=_CLOSE_SECONDS)
        for handle in handles:
            ray.kill(handle)
        give_back_places()


def _answer(ref: Any) -> object:
    """Return what a host said; nothing where it was killed, since another one takes its place."""
    try:
        return ray.get(ref)
    except RayError:
        return None
