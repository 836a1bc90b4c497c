"""The data of a run as its driver provides it: made before training, or beside it."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ftray import runs, storage
from ftray.cluster import Allotment, Node
from ftray.config.data import DataConfig, sources_of
from ftray.config.run import RunConfig
from ftray.data.batching.batches import EpochBatches
from ftray.data.batching.samples import Overflow, Samples
from ftray.data.batching.selection import training_samples
from ftray.data.limits import check, quick
from ftray.data.tokens.demand import Signals
from ftray.data.tokens.maker import Making
from ftray.data.tokens.manifest import TokenSet, publish_plan
from ftray.data.tokens.pipeline import Job, make_all, plan_tokens
from ftray.data.tokens.rows import Rows
from ftray.errors import ClusterError, DataError
from ftray.runs import Run
from ftray.train.intake import evals_of, shard_cache
from ftray.train.usage import SourceUse, write_plan
from ftray.train.work import Feed

logger = logging.getLogger(__name__)

STREAMED_BYTES = 32 * 2**20  # what is smaller is made within seconds, and shuffled as a whole


@contextmanager
def provided(
    config: RunConfig, run: Run, model_folder: Path, allotment: Allotment, machines: list[Node]
) -> Iterator[Feed]:
    """Make a run's tokens: all of them before the block, or beside it where they are streamed."""
    trust = config.model.trust_remote_code
    train, evals = sources_of(config.data.train), sources_of(config.data.eval)
    job = plan_tokens(train, config.data, model_folder, run.root, trust_remote_code=trust)
    eval_job = None
    if evals:
        eval_job = plan_tokens(evals, config.data, model_folder, run.root, trust_remote_code=trust)
    digests: dict[str, str | None] = {"data.train": job.plan.digest, "data.eval": None}
    if eval_job is not None:
        digests["data.eval"] = eval_job.plan.digest
    runs.keep_data(run, digests)
    eval_set = make_all(eval_job) if eval_job else None
    eval_folder = eval_set.folder if eval_set else None
    if reason := why_awaited(config, job):
        logger.debug("training waits for all token shards: %s", reason)
        if not config.data.keep_shards:
            logger.warning("data.keep_shards=false keeps all shards here: %s", reason)
        made = make_all(job)
        _check_limits(config.data, run, made, eval_set)
        yield Feed(made.folder, eval_folder, streams=False)
        return
    with _made_beside(config, run, job, _free_cpus(allotment, machines)) as folder:
        yield Feed(folder, eval_folder, streams=True)


def plan_batches(config: RunConfig, run: Run, feed: Feed) -> tuple[int, str]:
    """Count a run's steps, and describe its data; warns of what `data.max_length` does to it."""
    names = [source.name for source in sources_of(config.data.train)]
    if feed.streams:
        write_plan(run, [SourceUse(name, None, None, None) for name in names])
        return config.train.max_steps or 0, "data that is still being made"
    rows = Rows(feed.tokens, shard_cache(run, config.data))
    try:
        samples, overflow = training_samples(rows, config.data)
    except DataError as error:
        raise DataError(f"data.train: {error.message}", error.hint) from None
    _tell("data.train", overflow)
    if (evals := evals_of(config, run, feed, rows)) is not None:
        _tell("data.eval", evals.overflow)
    columns = rows.columns
    tokens, trained = int(columns.length.sum()), int(columns.labels.sum())
    batches = EpochBatches(samples, config.data, config.train)
    write_plan(run, _planned(samples, batches, names))
    return batches.total_steps, f"{len(columns)} rows, {tokens} tokens ({trained} trained)"


def _planned(samples: Samples, batches: EpochBatches, names: Sequence[str]) -> list[SourceUse]:
    """Say what each source gives over a whole run: its share of each epoch, as far as it goes."""
    uses = []
    for number, (name, count) in enumerate(zip(names, batches.rows_an_epoch, strict=True)):
        lengths = samples.length[samples.source == number]
        mean = float(lengths.mean()) if len(lengths) else 0.0
        uses.append(SourceUse(name, len(lengths), count, round(mean * count * batches.epochs)))
    return uses


def why_awaited(config: RunConfig, job: Job) -> str:
    """Say why training cannot start on the first shards; empty where it can."""
    data, sources = config.data, sources_of(config.data.train)
    if config.train.epochs is not None:
        return "train.epochs has to be turned into steps"
    if any(source.samples or source.epochs for source in sources):
        return "samples and epochs of a source count all its rows"
    if data.duplicates != "keep":
        return f"data.duplicates={data.duplicates} compares all rows"
    if data.limits.are_set:
        return "data.limits judge all rows"
    known = all(part.size for part in job.ranges)
    if data.keep_shards and known and sum(part.size for part in job.ranges) <= STREAMED_BYTES:
        return "they are soon made"
    return ""


@contextmanager
def _made_beside(config: RunConfig, run: Run, job: Job, tasks: int) -> Iterator[str]:
    data, signals = config.data, Signals.of(run.folder)
    if not data.keep_shards:
        own = storage.join(run.folder, "tokens", job.plan.digest)
        job = replace(job, recipe=replace(job.recipe, folder=own))
        _check_tasks(job, data, tasks)
    publish_plan(job.folder, job.plan)
    signals.clear()
    logger.info("training starts on the first token shards; %d tasks go on making them", tasks)
    making = Making(job, signals, data, sources_of(data.train), tasks)
    try:
        yield job.folder
    finally:
        making.stop()
        signals.clear()
    if not data.keep_shards:
        storage.delete(job.folder)


def _free_cpus(allotment: Allotment, machines: list[Node]) -> int:
    """Tasks that can run beside the workers, which could not start if these took all CPUs."""
    total = sum(node.cpus for node in machines)
    return max(1, int(total - allotment.workers * allotment.cpus))


def _check_tasks(job: Job, data: DataConfig, tasks: int) -> None:
    """A file that cannot be cut into ranges holds a CPU until the run is through with it."""
    sources = len(job.plan.sources)
    if sources > tasks:
        raise ClusterError(
            f"data.keep_shards=false reads {sources} sources side by side, and {tasks} CPU(s) are"
            " free beside the workers",
            "set data.keep_shards=true, or lower scaling.cpus_per_worker",
        )


def _tell(key: str, overflow: Overflow) -> None:
    if overflow.too_long or overflow.unlearned:
        logger.warning("%s: %s", key, overflow)


def _check_limits(data: DataConfig, run: Run, made: TokenSet, evals: TokenSet | None) -> None:
    if not data.limits.are_set:
        return
    rows = Rows(made.folder, shard_cache(run, data))
    eval_columns = Rows(evals.folder, shard_cache(run, data)).columns if evals else None
    check(quick(rows.columns, eval_columns, rows, made.bad_rows, data), data.limits)
