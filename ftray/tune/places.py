"""Where hosts go: how many, with what, how many trials each; checked before any starts."""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ftray import cluster
from ftray.cluster import Allotment, Node
from ftray.config.base import override
from ftray.config.run import RunConfig, ScalingConfig
from ftray.config.search import HostsConfig
from ftray.config.space import Space, Values, drawn
from ftray.errors import ClusterError, ConfigError, did_you_mean
from ftray.model.shape import ModelShape, read_shape
from ftray.train.machine import gpu_memory
from ftray.train.memory import GIB, USABLE_OF_GPU, Worker, unknown_targets
from ftray.tune.packed.memory import plan_capacity
from ftray.tune.packed.trial import Capacity

logger = logging.getLogger(__name__)


def allot_hosts(wanted: HostsConfig, machines: list[Node], trials: int) -> Allotment:
    """Decide how many hosts there are and what each gets; ClusterError where they don't fit."""
    gpus = sum(node.gpus for node in machines)
    per_host = wanted.gpus if wanted.gpus != "auto" else (1.0 if gpus else 0.0)
    in_all = max(1, min(trials, int(gpus / per_host))) if per_host else 1
    count = in_all if wanted.count == "auto" else wanted.count
    scaling = ScalingConfig(
        num_workers=count, gpus_per_worker=per_host, cpus_per_worker=wanted.cpus
    )
    allotment = cluster.allot_workers(count, scaling, machines)
    try:
        cluster.check_fit(allotment, None, machines)
    except ClusterError as error:
        raise type(error)(
            f"hosts of this search: {error.message}",
            "lower hosts.count, hosts.gpus or hosts.cpus in the space file",
        ) from None
    return allotment


def allot_runs(
    wanted: HostsConfig, scaling: ScalingConfig, machines: list[Node], trials: int
) -> tuple[int, Allotment]:
    """Decide how many ordinary trials train side by side, and what all their workers get.

    As many as the GPUs hold; without GPUs as many as `scaling.cpus_per_worker` leaves room for, and
    one where that is auto. ClusterError where they don't fit.
    """
    workers = cluster.allot(scaling, machines).workers

    def of(count: int) -> Allotment:
        allotment = cluster.allot_workers(count * workers, scaling, machines)
        cluster.check_fit(allotment, None, machines)
        return allotment

    is_limited = scaling.cpus_per_worker != "auto" or any(node.gpus for node in machines)
    most = 1 if wanted.count == "auto" and not is_limited else trials
    count = _most(most, of) if wanted.count == "auto" else wanted.count
    try:
        return count, of(count)
    except ClusterError as error:
        raise type(error)(
            f"{count} trials at once: {error.message}",
            "lower hosts.count in the space file, or scaling.num_workers in the run",
        ) from None


def _most(count: int, of: Callable[[int], Allotment]) -> int:
    """Return the greatest number that fits, or 1."""
    while count > 1:
        with suppress(ClusterError):
            of(count)
            break
        count -= 1
    return count


def capacity(
    run: RunConfig,
    trials: Sequence[RunConfig],
    share: int,
    folder: Path,
    worker: Worker,
    wanted: HostsConfig,
) -> Capacity:
    """Decide how many of the largest trials a host holds; ClusterError where none fits.

    Never more than its equal share of all trials: another host would have nothing to do.
    """
    planned = plan_capacity(run, trials, share, read_shape(folder), worker)
    if planned.slots < 1:
        have = "?" if worker.memory is None else f"{worker.memory / GIB:.1f} GiB"
        raise ClusterError(
            f"a host's memory ({have}) does not hold the base model and the largest trial",
            "lower the ranks of the space or data.max_length, or use adapter.method=qlora",
        )
    if wanted.slots == "auto":
        return planned
    slots = min(wanted.slots, share)
    if slots > planned.slots:
        logger.warning(
            "hosts.slots=%d: memory is estimated to hold %d trials", slots, planned.slots
        )
    return Capacity(slots, planned.tokens, planned.memory)


def worker_of(allotment: Allotment, machines: list[Node]) -> Worker:
    """What one host has: its share of a machine's memory, or of a GPU's."""
    if not allotment.gpus:
        holding = [node for node in machines if node.cpus]
        neighbours = math.ceil(allotment.workers / len(holding))
        memory = int(min(node.memory for node in holding) / neighbours)
        return Worker("cpu", 1, memory, "this cluster")
    sizes = [size for node in machines if node.gpus for size in _gpu_memory(node)]
    share = int(min(sizes) * min(1.0, allotment.gpus) * USABLE_OF_GPU) if sizes else None
    return Worker("gpu", 1, share, "this cluster")


def corners(run: RunConfig, space: Space) -> list[RunConfig]:
    """Return trials at the ends of each distribution, and all least and all greatest at once."""
    draws: list[Values] = []
    for end in (0, -1):
        labels = {key: (draw.labels or draw.ends[:2])[end] for key, draw in space.items()}
        draws.append(drawn(space, labels))
        draws += [
            {**draws[-1], key: value}
            for key, draw in space.items()
            if key in draws[-1]
            for value in (draw.options or draw.ends[:2])
        ]
    return [trial for trial in map(lambda values: _trial(run, values), draws) if trial is not None]


def check_targets(ends: Sequence[RunConfig], shape: ModelShape | None) -> None:
    """Raise ConfigError where a trial is to adapt a layer that the model does not have."""
    if shape is None:
        return
    known = [layer.rpartition(".")[2] for layer in shape.linear]
    for end in ends:
        for name in unknown_targets(end, shape):
            raise ConfigError(
                f"adapter.target: no linear layer of {end.model.name} is called '{name}'",
                did_you_mean(name, known),
            )


def _trial(run: RunConfig, values: Values) -> RunConfig | None:
    try:
        return override(run, values)
    except ConfigError:
        return None  # ends that are not possible together


def _gpu_memory(node: Node) -> tuple[int, ...]:
    here = NodeAffinitySchedulingStrategy(node.id, soft=False)
    look = ray.remote(num_cpus=0)(gpu_memory).options(scheduling_strategy=here)
    sizes: tuple[int, ...] = ray.get(look.remote())
    return sizes
