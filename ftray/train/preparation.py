"""What is decided before a run's workers begin: model, micro-batch, tokens, steps."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ftray import cluster, runs
from ftray.cluster import Allotment, Node
from ftray.config.base import override
from ftray.config.run import RunConfig
from ftray.model.folder import fetch
from ftray.model.shape import read_shape
from ftray.runs import CheckpointRecord, Run
from ftray.train.choice import Choice, settle
from ftray.train.feed import plan_batches, provided
from ftray.train.machine import gpu_memory
from ftray.train.memory import GIB, USABLE_OF_GPU, Memory, Worker
from ftray.train.work import Feed, Work

logger = logging.getLogger(__name__)


@contextmanager
def prepared(
    config: RunConfig, run: Run, allotment: Allotment, machines: list[Node]
) -> Iterator[tuple[Work, int]]:
    """Plan a run; yields what its workers are to do, and its number of steps.

    In the block tokens are made that a stream still needs.
    """
    folder = fetch(config.model, run.root)
    choice = _planned(config, run, folder, allotment, machines)
    with provided(config, run, folder, allotment, machines) as feed:
        yield _plan(config, run, feed, choice, allotment)


def _planned(
    config: RunConfig, run: Run, folder: Path, allotment: Allotment, machines: list[Node]
) -> Choice:
    """Choose how workers compute, and check that it fits, before any data is read.

    A resumed run keeps its automatic micro-batch: free memory differs from day to day.
    """
    worker, shape = _worker(allotment, machines), read_shape(folder)
    before = _saved_by_as_many(run, worker.count)
    if config.train.micro_batch_size == "auto" and before and before.micro_batch_size:
        config = override(config, {"train.micro_batch_size": before.micro_batch_size})
    choice = settle(config, shape, worker)
    logger.info("%s", choice.reason)
    if choice.memory is not None:
        _check_memory(choice.memory, worker, allotment, machines)
    return choice


def _plan(
    config: RunConfig, run: Run, feed: Feed, choice: Choice, allotment: Allotment
) -> tuple[Work, int]:
    """Count the steps, and decide what the workers will be told."""
    total_steps, described = plan_batches(config, run, feed)
    work = Work(
        config=override(config, {"train.activation_checkpointing": choice.activations}),
        run=run,
        feed=feed,
        micro_batch_size=choice.micro,
        threads=_threads(run, allotment),
        attempt=runs.read_status(run).attempts,
        memory=None if choice.memory is None else choice.memory.allocated,
        graphs=choice.graphs,
    )
    logger.info(
        "%s; %d steps of %d × %d packs on %s",
        described,
        total_steps,
        allotment.workers,
        config.train.global_batch_size // allotment.workers,
        allotment,
    )
    return work, total_steps


def _threads(run: Run, allotment: Allotment) -> int:
    """A resumed run keeps its number of threads: another one rounds sums differently."""
    before = _saved_by_as_many(run, allotment.workers)
    return before.threads if before else allotment.threads


def _saved_by_as_many(run: Run, workers: int) -> CheckpointRecord | None:
    records = runs.checkpoints(run)
    return next((record for record in records if record.world_size == workers), None)


def _worker(allotment: Allotment, machines: list[Node]) -> Worker:
    """What one worker has: its share of a host's memory, or of a GPU's."""
    if not allotment.gpus:
        hosts = [node for node in machines if node.cpus]  # a head node often trains nothing
        neighbours = math.ceil(allotment.workers / len(hosts))
        memory = int(min(node.memory for node in hosts) / neighbours)
        return Worker("cpu", allotment.workers, memory, "this cluster")
    sizes = [size for node in machines if node.gpus for size in _gpu_memory(node)]
    share = int(min(sizes) * min(1.0, allotment.gpus) * USABLE_OF_GPU) if sizes else None
    return Worker("gpu", allotment.workers, share, "this cluster")


def _gpu_memory(node: Node) -> tuple[int, ...]:
    here = NodeAffinitySchedulingStrategy(node.id, soft=False)
    look = ray.remote(num_cpus=0)(gpu_memory).options(scheduling_strategy=here)
    sizes: tuple[int, ...] = ray.get(look.remote())
    return sizes


def _check_memory(
    memory: Memory, worker: Worker, allotment: Allotment, machines: list[Node]
) -> None:
    needed, on_host = memory.peak, memory.on_host
    if worker.device == "cpu":
        on_host = needed
    if on_host:
        cluster.check_fit(allotment, on_host, machines)
    if worker.device == "gpu" and worker.memory is not None and needed > worker.memory:
        numbers = f"{needed / GIB:.1f} of {worker.memory / GIB:.1f} GiB"
        logger.warning("a worker's GPU may not hold the run: about %s; see ftray check", numbers)
