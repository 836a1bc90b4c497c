"""One fine-tuning run from its config to a published adapter."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ftray import cluster, runs, storage
from ftray.cluster import Allotment, Node
from ftray.config.cluster import ClusterConfig
from ftray.config.run import RunConfig, as_list
from ftray.data.batches import Batches
from ftray.data.pipeline import make_tokens
from ftray.data.shards import Rows
from ftray.data.sources import check_sources
from ftray.errors import FtrayError
from ftray.model.base import fetch, local_cache
from ftray.model.shape import ModelShape, read_shape
from ftray.registry import AdapterRecord
from ftray.runs import Run, State
from ftray.train.group import train_to_the_end
from ftray.train.loop import Work
from ftray.train.machine import this_machine
from ftray.train.memory import Worker, estimate
from ftray.train.plan import choose_micro_batch
from ftray.train.plot import loss_curve
from ftray.train.progress import watched
from ftray.train.publish import publish_run

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


def fit(
    config: RunConfig, *, on: ClusterConfig | None = None, overwrite: bool = False
) -> RunResult:
    """Train a run, or go on with one that was interrupted, and publish what it learned.

    What can be known beforehand is checked before a worker starts: the data's form, the cluster's
    resources, the storage root.
    """
    began = time.monotonic()
    root = storage.storage_root(config.storage)
    check_sources([*as_list(config.data.train), *as_list(config.data.eval)], config.data)
    run = runs.open_run(root, config, overwrite=overwrite)
    with _status_kept(run), cluster.connected(on):
        machines = cluster.nodes()
        allotment = cluster.allot(config.scaling, machines)
        cluster.check_fit(allotment, None, machines)
        cluster.check_storage(root)
        work, total_steps = _plan(config, run, allotment, machines)
        with watched(run, total_steps):
            train_to_the_end(work, allotment, config.scaling.placement_timeout_seconds)
            adapter = _published(config, run, allotment)
        plot = storage.join(run.folder, "loss.png")
        metrics = runs.read_metrics(run)
        storage.write(plot, loss_curve(config.name, metrics))
        runs.write_status(run, replace(runs.read_status(run), adapter=adapter.ref))
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
    )


def _plan(
    config: RunConfig, run: Run, allotment: Allotment, machines: list[Node]
) -> tuple[Work, int]:
    """Make the tokens, count the steps, and decide what the workers will be told."""
    folder = fetch(config.model, run.root)
    worker = _worker(allotment, machines)
    shape = read_shape(folder)
    micro = choose_micro_batch(config, shape, worker)
    _check_memory(config, shape, worker, allotment, machines)
    tokens = make_tokens(as_list(config.data.train), config.data, folder, run.root)
    evals = as_list(config.data.eval)
    work = Work(
        config=config,
        run=run,
        tokens=tokens,
        eval_tokens=make_tokens(evals, config.data, folder, run.root) if evals else None,
        micro_batch_size=micro,
        threads=_threads(run, allotment),
        attempt=runs.read_status(run).attempts,
    )
    rows = Rows(tokens, local_cache(run.root))
    batches = Batches(rows, config.data, config.train)
    logger.info(
        "%d rows, %d tokens (%d trained); %d steps of %d × %d packs on %s",
        tokens.rows,
        tokens.tokens,
        tokens.label_tokens,
        batches.total_steps,
        allotment.workers,
        config.train.global_batch_size // allotment.workers,
        allotment,
    )
    return work, batches.total_steps


def _threads(run: Run, allotment: Allotment) -> int:
    """A resumed run keeps its number of threads: another one rounds sums differently."""
    saved = runs.checkpoints(run)
    same_size = [record for record in saved if record.world_size == allotment.workers]
    return same_size[0].threads if same_size else allotment.threads


def _worker(allotment: Allotment, machines: list[Node]) -> Worker:
    """What one worker has: its share of a host's memory, or of a GPU's."""
    if not allotment.gpus:
        smallest = min(node.memory for node in machines)
        neighbours = math.ceil(allotment.workers / len(machines))
        memory = int(smallest / neighbours)
        return Worker("cpu", allotment.workers, memory, "this cluster")
    sizes = [size for node in machines if node.gpus for size in _gpu_memory(node)]
    share = int(min(sizes) * min(1.0, allotment.gpus)) if sizes else None
    return Worker("gpu", allotment.workers, share, "this cluster")


def _gpu_memory(node: Node) -> tuple[int, ...]:
    here = NodeAffinitySchedulingStrategy(node.id, soft=False)
    look = ray.remote(num_cpus=0)(this_machine).options(scheduling_strategy=here)
    sizes: tuple[int, ...] = ray.get(look.remote()).gpus
    return sizes


def _check_memory(
    config: RunConfig,
    shape: ModelShape | None,
    worker: Worker,
    allotment: Allotment,
    machines: list[Node],
) -> None:
    if shape is None or worker.device == "gpu":
        return
    needed = estimate(config, shape, worker, choose_micro_batch(config, shape, worker)).peak
    cluster.check_fit(allotment, needed, machines)


def _published(config: RunConfig, run: Run, allotment: Allotment) -> AdapterRecord:
    """Publish on a worker's share of the cluster: the driver's machine may have no GPU."""
    task = ray.remote(num_cpus=allotment.cpus, num_gpus=allotment.gpus, max_retries=1)(publish_run)
    chat_template = config.data.chat_template
    own = None if chat_template in ("model", "none") else Path(chat_template).read_text("utf-8")
    try:
        record: AdapterRecord = ray.get(task.remote(config, run, own))
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, FtrayError) else error from None
    return record


@contextmanager
def _status_kept(run: Run) -> Iterator[None]:
    """Let the status say how the block ended; `succeeded` is written last."""
    _set_state(run, "running")
    try:
        yield
    except KeyboardInterrupt:
        _set_state(run, "paused")
        raise
    except BaseException as error:
        _set_state(run, "failed", str(error))
        raise
    _set_state(run, "succeeded")


def _set_state(run: Run, state: State, error: str | None = None) -> None:
    runs.write_status(run, replace(runs.read_status(run), state=state, error=error))
