"""The data of a run: made on the driver, before training or beside it, and read by the workers."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from ftray import runs, storage
from ftray.cluster import Allotment, Node
from ftray.config.data import DataConfig, sources_of
from ftray.config.run import RunConfig
from ftray.data.batching.batches import Batches, EpochBatches, eval_packs
from ftray.data.batching.collation import Pack
from ftray.data.batching.samples import Overflow, Samples
from ftray.data.batching.selection import eval_samples, training_samples
from ftray.data.batching.stream import StreamBatches
from ftray.data.limits import check, quick
from ftray.data.tokens.cache import ShardCache
from ftray.data.tokens.columns import Columns, address_of, joined
from ftray.data.tokens.demand import Demand, Follower, Signals
from ftray.data.tokens.maker import Making
from ftray.data.tokens.manifest import TokenSet, publish_plan
from ftray.data.tokens.pipeline import Job, make_all, plan_tokens
from ftray.data.tokens.rows import Rows
from ftray.data.tokens.shards import MOST_OPEN
from ftray.errors import ClusterError, DataError
from ftray.runs import Run
from ftray.train.usage import SourceUse, metric_of, write_plan
from ftray.train.work import Feed

logger = logging.getLogger(__name__)

STREAMED_BYTES = 32 * 2**20  # what is smaller is made within seconds, and shuffled as a whole


class Intake:
    """The rows and batches that a worker trains on, and what it measures with."""

    def __init__(self, config: RunConfig, run: Run, feed: Feed, *, is_first: bool) -> None:
        self._config = config
        self._run = run
        self._feed = feed
        self._demand: Demand | None = None
        self.sources = len(sources_of(config.data.train))
        self.rows = self._rows(feed, is_first=is_first)
        self.batches = self._batches()

    def saved(self, step: int) -> None:
        """Say that a restart would begin at a step: what came before is not needed any more."""
        if self._demand is None or not isinstance(self.batches, StreamBatches):
            return
        if step < self.batches.total_steps:  # of what comes then nothing may be there, or be good
            window = self.batches.window_of(step)
            self._demand.needs(window.first, window.last)

    def packs(self, step: int) -> list[Pack]:
        """Return the packs of a global batch."""
        packs = self.batches.packs(step)
        if self._demand is not None:
            samples = (sample for pack in packs for sample in pack)
            self._demand.takes({(one.source, address_of(one.key)[:2]) for one in samples})
        return packs

    def tokens_by_source(self, packs: Sequence[Pack]) -> dict[str, int]:
        """Count a global batch's tokens by source, as metrics; of a single source nothing."""
        if self.sources == 1:
            return {}
        counts = {metric_of(number): 0 for number in range(self.sources)}
        for sample in (sample for pack in packs for sample in pack):
            counts[metric_of(sample.source)] += sample.length
        return counts

    def evals(self) -> "Evals | None":
        """Return the eval set, None where there is none."""
        rows = self.rows
        if self._feed.streams:  # to measure is not to come back to the first shards
            cache = _cache(self._run, self._config.data)
            rows = Rows(
                self._feed.tokens, cache, Follower(Signals.of(self._run.folder).error, None)
            )
        return _evals(self._config, self._run, self._feed, rows)

    def _rows(self, feed: Feed, *, is_first: bool) -> Rows:
        data = self._config.data
        cache = _cache(self._run, data)
        if not feed.streams:
            return Rows(feed.tokens, cache)
        signals = Signals.of(self._run.folder)
        if is_first and not data.keep_shards:
            self._demand = Demand(signals.reached, self.sources)
        return Rows(
            feed.tokens,
            cache,
            Follower(signals.error, self._demand),
            fails_on_bad_rows=data.on_bad_row == "fail",
            most_open=MOST_OPEN if data.keep_shards else data.shards_ahead,
        )

    def _batches(self) -> Batches:
        data, train = self._config.data, self._config.train
        if self._feed.streams:
            return StreamBatches(self.rows, data, train)
        return EpochBatches(training_samples(self.rows, data)[0], data, train)


@dataclass(frozen=True)
class Evals:
    """What a run measures with."""

    rows: Rows
    packs: list[Pack]
    overflow: Overflow


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
    rows = Rows(feed.tokens, _cache(run, config.data))
    try:
        samples, overflow = training_samples(rows, config.data)
    except DataError as error:
        raise DataError(f"data.train: {error.message}", error.hint) from None
    _tell("data.train", overflow)
    if (evals := _evals(config, run, feed, rows)) is not None:
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


def _evals(config: RunConfig, run: Run, feed: Feed, rows: Rows) -> Evals | None:
    data = config.data
    if feed.eval_tokens is not None:
        rows = Rows(feed.eval_tokens, _cache(run, data))
        columns = rows.columns
    elif data.eval_fraction is not None:
        columns = _seen_first(rows, streams=feed.streams)
    else:
        return None
    try:
        samples, overflow = eval_samples(columns, rows, data)
    except DataError as error:
        raise DataError(f"data.eval: {error.message}", error.hint) from None
    return Evals(rows, eval_packs(samples, data), overflow)


def _tell(key: str, overflow: Overflow) -> None:
    if overflow.too_long or overflow.unlearned:
        logger.warning("%s: %s", key, overflow)


def _cache(run: Run, data: DataConfig) -> ShardCache:
    return ShardCache(storage.local_cache(run.root) / "tokens", int(data.cache_gb * 1e9))


def _seen_first(rows: Rows, *, streams: bool) -> Columns:
    """All rows, or of each source those of its first shard: an eval set is there from the start."""
    if not streams:
        return rows.columns
    sources = range(len(rows.plan.sources))
    return joined([shard for number in sources for shard in islice(rows.stream(number), 1)])


def _check_limits(data: DataConfig, run: Run, made: TokenSet, evals: TokenSet | None) -> None:
    if not data.limits.are_set:
        return
    rows = Rows(made.folder, _cache(run, data))
    eval_columns = Rows(evals.folder, _cache(run, data)).columns if evals else None
    check(quick(rows.columns, eval_columns, rows, made.bad_rows, data), data.limits)
