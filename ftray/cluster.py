"""What the Ray cluster holds, and whether that is what a run needs, in words."""

import os
import uuid
from dataclasses import dataclass

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ftray import storage
from ftray.config.cluster import READ_CPUS
from ftray.config.run import ScalingConfig
from ftray.errors import ClusterError, OccupiedError
from ftray.machines import Node as Node
from ftray.machines import freed, stock
from ftray.machines import nodes as nodes

_GPU_WORKER_CPUS = 4.0  # more than a training loop on a GPU can use


@dataclass(frozen=True)
class Allotment:
    """What each training worker gets."""

    workers: int
    cpus: float
    gpus: float
    threads: int

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.workers} workers of {self.cpus:g} CPUs{gpus}"


def allot(scaling: ScalingConfig, machines: list[Node], most: int | None = None) -> Allotment:
    """Decide what each worker gets; `auto` shares what the machines have, less 1 CPU for reads.

    Of an elastic run as many workers as the machines can hold, each with a CPU of its own, and at
    most `most`; at least its minimum, whether or not it fits.
    """
    for workers in range(most or scaling.most_workers, scaling.least_workers, -1):
        allotment = allot_workers(workers, scaling, machines)
        if (allotment.cpus >= 1 or scaling.cpus_per_worker != "auto") and _fits(
            allotment, None, machines
        ):
            return allotment
    return allot_workers(scaling.least_workers, scaling, machines)


def allot_workers(workers: int, scaling: ScalingConfig, machines: list[Node]) -> Allotment:
    """Decide what each of so many workers gets."""
    all_gpus = sum(node.gpus for node in machines)
    gpus = scaling.gpus_per_worker
    if gpus == "auto":
        gpus = 1.0 if all_gpus else 0.0
    cpus = scaling.cpus_per_worker
    if cpus == "auto":
        cpus = _share(workers, gpus, machines)
    return Allotment(workers, cpus, gpus, _threads(workers, machines))


def check_fit(wanted: Allotment, memory_per_worker: int | None, machines: list[Node]) -> None:
    """Raise ClusterError, with the arithmetic, if the machines cannot hold the workers.

    OccupiedError if they could once other jobs have ended. `memory_per_worker` is host memory in
    bytes, None where it isn't known. Without this check Ray waits for ever, or runs training and
    starves the reads that feed it.
    """
    try:
        _check_fit(wanted, memory_per_worker, machines)
    except ClusterError as error:
        if not _fits(wanted, memory_per_worker, freed(machines)):
            raise
        raise OccupiedError(error.message, error.hint) from None


def _check_fit(wanted: Allotment, memory_per_worker: int | None, machines: list[Node]) -> None:
    has_gpus = sum(node.gpus for node in machines)
    if wanted.workers * wanted.gpus > has_gpus:
        raise ClusterError(
            f"{wanted.workers} workers × {wanted.gpus:g} GPUs need {wanted.workers * wanted.gpus:g}"
            f" GPUs; the cluster has {_gpus(machines)}",
            f"{_wait(machines)}lower scaling.num_workers, or set scaling.gpus_per_worker=0 to train"
            " on CPUs",
        )
    has_cpus = sum(node.cpus for node in machines)
    needs_cpus = wanted.workers * wanted.cpus + READ_CPUS
    if needs_cpus > has_cpus + 1e-6:
        raise ClusterError(
            f"{wanted.workers} workers × {wanted.cpus:g} CPUs + {READ_CPUS:g} for reading data"
            f" need {needs_cpus:g} CPUs; the cluster has {_cpus(machines)}",
            f"{_wait(machines)}set scaling.cpus_per_worker=auto, or lower scaling.num_workers",
        )
    places = sum(_room(node, wanted, None) for node in machines)
    if places < wanted.workers:
        raise ClusterError(
            f"{wanted}: each must fit on one machine; only {places} do ({_described(machines)})",
            "lower scaling.cpus_per_worker or scaling.gpus_per_worker",
        )
    if memory_per_worker:
        _check_memory(wanted, memory_per_worker, machines)


def check_storage(root: str) -> None:
    """Raise ClusterError if the storage root is a local folder that not every machine sees."""
    machines = nodes()
    if storage.is_uri(root) or len(machines) == 1:
        return
    marker = storage.join(root, f".seen-{uuid.uuid4().hex}")
    storage.write(marker, b"")
    try:
        blind = [node.name for node in machines if not _sees(node, marker)]
    finally:
        storage.delete(marker)
    if blind:
        raise ClusterError(
            f"the storage root {root} is a local folder that {', '.join(blind)} cannot see",
            "set storage to a shared folder or to an object store (s3://…, gs://…)",
        )


def has_room_for(wanted: Allotment, instead_of: Allotment) -> bool:
    """Whether the cluster has what `wanted` needs once `instead_of` has made room."""
    free = ray.available_resources()
    cpus = free.get("CPU", 0.0) + instead_of.workers * instead_of.cpus
    gpus = free.get("GPU", 0.0) + instead_of.workers * instead_of.gpus
    return bool(wanted.workers * wanted.cpus <= cpus and wanted.workers * wanted.gpus <= gpus)


def free_resources() -> str:
    """Say in words what of the cluster is free now: the reason of a placement that timed out."""
    total, free = ray.cluster_resources(), ray.available_resources()
    parts = [
        f"{free.get(kind, 0.0):g} of {total[kind]:g} {kind}s free"
        for kind in ("GPU", "CPU")
        if kind in total
    ]
    others = dict.fromkeys(held.by for node in nodes() for held in node.held)
    users = f" (used by {', '.join(others)})" if others else ""
    return (", ".join(parts) or "no resources at all") + users


def _gpus(machines: list[Node]) -> str:
    used = [(held.by, held.gpus) for node in machines for held in node.held]
    return stock(sum(node.gpus for node in machines), used)


def _cpus(machines: list[Node]) -> str:
    used = [(held.by, held.cpus) for node in machines for held in node.held]
    return stock(sum(node.cpus for node in machines), used)


def _wait(machines: list[Node]) -> str:
    return "wait until more is free, " if any(node.held for node in machines) else ""


def _fits(wanted: Allotment, memory_per_worker: int | None, machines: list[Node]) -> bool:
    try:
        _check_fit(wanted, memory_per_worker, machines)
    except ClusterError:
        return False
    return True


def _share(workers: int, gpus: float, machines: list[Node]) -> float:
    """CPUs of each worker: an equal share of all, or the most with which machines hold them all."""
    share = max(sum(node.cpus for node in machines) - READ_CPUS, 0.1) / workers
    share = min(share, _GPU_WORKER_CPUS) if gpus else share
    parts = [node.cpus / count for node in machines for count in range(1, workers + 1)]
    for cpus in sorted({_rounded(part) for part in [share, *parts] if part <= share}, reverse=True):
        wanted = Allotment(workers, cpus, gpus, threads=1)
        if sum(_room(node, wanted, None) for node in machines) >= workers:
            return cpus
    return _rounded(share)  # the machines cannot hold them: `check_fit` says why


def _rounded(cpus: float) -> float:
    """Down to whole CPUs, or to hundredths of one."""
    return float(int(cpus)) if cpus >= 1 else max(0.01, int(cpus * 100 + 1e-6) / 100)


def _threads(workers: int, machines: list[Node]) -> int:
    """Torch threads of a worker: its machine's CPUs shared evenly, as many as there really are."""
    cpus = max((node.cpus for node in machines), default=1.0)
    workers_here = -(-workers // max(1, len(machines)))
    return max(1, int(min(cpus, os.cpu_count() or 1) // workers_here))


def _room(node: Node, wanted: Allotment, memory: int | None) -> int:
    """How many of the workers one machine could hold."""
    limits = [node.cpus / wanted.cpus + 1e-6]
    if wanted.gpus:
        limits.append(node.gpus / wanted.gpus + 1e-6)
    if memory:
        limits.append(node.memory / memory)
    return int(min(limits))


def _check_memory(wanted: Allotment, memory: int, machines: list[Node]) -> None:
    places = sum(_room(node, wanted, memory) for node in machines)
    if places < wanted.workers:
        raise ClusterError(
            f"{wanted.workers} workers need about {memory / 2**30:.1f} GiB of memory each; the"
            f" machines have room for {places} ({_described(machines)})",
            "lower scaling.num_workers, train.micro_batch_size or data.max_length;"
            " ftray check shows what takes the memory",
        )


def _described(machines: list[Node]) -> str:
    return "; ".join(
        f"{node.name}: {node.cpus:g} CPUs, {node.gpus:g} GPUs, {node.memory / 2**30:.1f} GiB"
        for node in machines
    )


def _sees(node: Node, path: str) -> bool:
    here = NodeAffinitySchedulingStrategy(node.id, soft=False)
    look = ray.remote(num_cpus=0)(storage.exists).options(scheduling_strategy=here)
    seen: bool = ray.get(look.remote(path))
    return seen
