"""One fine-tuning run from its config to a published adapter."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from threading import Event

import ray
from ray.exceptions import RayError, RayTaskError

from ftray import cluster, registry, runs, storage
from ftray.cluster import Allotment
from ftray.config.data import sources_of
from ftray.config.run import RunConfig
from ftray.connection import Connection
from ftray.data.sources import check_sources
from ftray.errors import FtrayError, TrainError, first_line
from ftray.registry import AdapterRecord
from ftray.runs import Run
from ftray.storage.patience import patient
from ftray.train.group import early_group, train_to_the_end
from ftray.train.progress import watched
from ftray.train.size import Size
from ftray.train.status import status_kept
from ftray.train.usage import SourceUse, read_usage


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
        if not runs.checkpoints(run):  # there is nothing to start as soon as Ray has started
            import_module("ftray.train.preparation")  # torch takes as long as Ray
        connection.wait()
        template = own_template(config)
        allotment = train_run(config, run, Event())
        adapter = _published(config, run, allotment, template)
        from ftray.train.plot import loss_curve

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
    size = Size(config.scaling, allotment)
    with ExitStack() as stack:
        # A run that goes on has its tokens, and was found to fit: its workers start beside us.
        goes_on = bool(runs.checkpoints(run))
        group = stack.enter_context(early_group(run, size)) if goes_on else None
        from ftray.train.preparation import prepared

        work, total_steps = stack.enter_context(prepared(config, run, allotment, machines))
        runs.change_status(run, lambda status: replace(status, total_steps=total_steps))
        with watched(run, total_steps), patient():
            train_to_the_end(work, size, stop, group)
    return allotment


def own_template(config: RunConfig) -> str | None:
    """The chat template if the run brings its own; read now, lest it be gone when we publish."""
    name = config.data.chat_template
    return None if name in ("model", "none") else Path(name).read_text("utf-8")


def _published(
    config: RunConfig, run: Run, allotment: Allotment, template: str | None
) -> AdapterRecord:
    """Publish on a worker's share of the cluster: the driver's machine may have no GPU."""

    def publish() -> AdapterRecord:
        from ftray.train.publish import publish_run  # what it needs, the driver does not

        return publish_run(config, run, template)

    task = ray.remote(num_cpus=allotment.cpus, num_gpus=allotment.gpus, max_retries=1)(publish)
    try:
        record: AdapterRecord = ray.get(task.remote())
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, FtrayError) else error from None
    except RayError as error:
        raise TrainError(
            f"the task that publishes was lost: {first_line(error)}",
            "run the same command again: all steps are done, only publishing is left",
        ) from error
    return record
