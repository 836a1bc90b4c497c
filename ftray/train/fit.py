"""One fine-tuning run from its config to a published adapter."""

import logging
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ftray import cluster, registry, runs, storage
from ftray.cluster import Allotment, Node
from ftray.config.base import override
from ftray.config.data import sources_of
from ftray.config.run import RunConfig
from ftray.connection import Connection
from ftray.data.sources import check_sources
from ftray.errors import FtrayError, TrainError, first_line
from ftray.model.base import fetch
from ftray.model.shape import read_shape
from ftray.registry import AdapterRecord
from ftray.runs import CheckpointRecord, Run
from ftray.storage.patience import patient
from ftray.train.choice import Choice, settle
from ftray.train.feed import Feed, plan_batches, provided
from ftray.train.group import train_to_the_end
from ftray.train.loop import Work
from ftray.train.machine import gpu_memory
from ftray.train.memory import GIB, USABLE_OF_GPU, Worker
from ftray.train.plot import loss_curve
from ftray.train.progress import watched
from ftray.train.status import status_kept
from ftray.train.usage import SourceUse, read_usage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves behind."""

    run: Run
    adapter: AdapterRecord
    steps: int
    loss: float
    eval_loss: float | None  # the best
    tokens: int
    seconds: float
    plot: str  # where the loss curve is
    sources: list[SourceUse]


def fit(config: RunConfig, connection: Connection, *, overwrite: bool = False) -> RunResult:
    """Train a run, or go on with one that was interrupted, and publish what it learned.

    What can be known beforehand is checked before a worker starts: the data's form, the cluster's
    resources, the storage root.
    """
    began = time.monotonic()
    root = storage.storage_root(config.storage)
    for sources in (config.data.train, config.data.eval):
        check_sources(sources_of(sources), config.data)
    if config.adapter.init_from:
        registry.resolve(root, config.adapter.init_from)  # raises before anything starts
    run = runs.open_run(root, config, overwrite=overwrite)
    with status_kept(run):
        connection.wait()
        template = own_template(config)
        allotment = train_run(config, run, Event())
        adapter = _published(config, run, allotment, template)
        plot = storage.join(run.folder, "loss.png")
        metrics = runs.read_metrics(run)
        storage.write(plot, loss_curve(config.name, metrics))
        runs.change_status(run, lambda status: replace(status, adapter=adapter.ref))
    steps = [line for line in metrics if "loss" in line]
    return RunResult(
        run=run,
        adapter=adapter,
        steps=steps[-1]["step"],
        loss=steps[-1]["loss"],
        eval_loss=min((line["eval_loss"] for line in metrics if "eval_loss" in line), default=None),
        tokens=sum(line["tokens"] for line in steps),
        seconds=time.monotonic() - began,
        plot=plot,
        sources=read_usage(run),
    )


def train_run(config: RunConfig, run: Run, stop: Event) -> Allotment:
    """Train a run that has been opened to its last step, with Ray connected; publishes nothing.

    `stop` does what Ctrl-C does: the workers save, and KeyboardInterrupt is raised. Returns what
    each worker has had.
    """
    machines = cluster.nodes()
    allotment = cluster.allot(config.scaling, machines)
    cluster.check_fit(allotment, None, machines)
    cluster.check_storage(run.root)
    folder = fetch(config.model, run.root)
    choice = _planned(config, run, folder, allotment, machines)
    with provided(config, run, folder, allotment, machines) as feed:
        work, total_steps = _plan(config, run, feed, choice, allotment)
        runs.change_status(run, lambda status: replace(status, total_steps=total_steps))
        with watched(run, total_steps), patient():
            train_to_the_end(work, allotment, stop)
    return allotment


def own_template(config: RunConfig) -> str | None:
    """The chat template if the run brings its own; read now, lest it be gone when we publish."""
    name = config.data.chat_template
    return None if name in ("model", "none") else Path(name).read_text("utf-8")


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
        _check_memory(choice.memory.peak, worker, allotment, machines)
    return choice


def _plan(
    config: RunConfig, run: Run, feed: Feed, choice: Choice, allotment: Allotment
) -> tuple[Work, int]:
    """Count the steps, and decide what the workers will be told."""
    total_steps, described = plan_batches(config, run, feed)
    work = Work(
        config=override(config, {"train.activation_checkpointing": choice.recompute}),
        run=run,
        feed=feed,
        micro_batch_size=choice.micro,
        threads=_threads(run, allotment),
        attempt=runs.read_status(run).attempts,
        memory=None if choice.memory is None else choice.memory.peak - choice.memory.overhead,
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


def _check_memory(needed: int, worker: Worker, allotment: Allotment, machines: list[Node]) -> None:
    if worker.device == "cpu":
        cluster.check_fit(allotment, needed, machines)
    elif worker.memory is not None and needed > worker.memory:
        numbers = f"{needed / GIB:.1f} of {worker.memory / GIB:.1f} GiB"
        logger.warning("a worker's GPU may not hold the run: about %s; see ftray check", numbers)


def _published(
    config: RunConfig, run: Run, allotment: Allotment, template: str | None
) -> AdapterRecord:
    """Publish on a worker's share of the cluster: the driver's machine may have no GPU."""
    from ftray.train.publish import publish_run

    task = ray.remote(num_cpus=allotment.cpus, num_gpus=allotment.gpus, max_retries=1)(publish_run)
    try:
        record: AdapterRecord = ray.get(task.remote(config, run, template))
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, FtrayError) else error from None
    except RayError as error:
        raise TrainError(
            f"the task that publishes was lost: {first_line(error)}",
            "run the same command again: all steps are done, only publishing is left",
        ) from error
    return record
