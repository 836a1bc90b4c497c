"""The data of a run as its workers read it: rows, batches, and what is measured with."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from ftray import storage
from ftray.config.data import DataConfig, sources_of
from ftray.config.run import RunConfig
from ftray.data.batching.batches import Batches, EpochBatches, eval_packs
from ftray.data.batching.samples import Overflow, Pack
from ftray.data.batching.selection import eval_samples, training_samples
from ftray.data.batching.stream import StreamBatches
from ftray.data.tokens.cache import ShardCache
from ftray.data.tokens.columns import Columns, address_of, joined
from ftray.data.tokens.demand import Demand, Follower, Signals
from ftray.data.tokens.rows import Rows
from ftray.data.tokens.shards import MOST_OPEN
from ftray.errors import DataError
from ftray.runs import Run
from ftray.train.usage import metric_of
from ftray.train.work import Feed


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
            cache = shard_cache(self._run, self._config.data)
            rows = Rows(
                self._feed.tokens, cache, Follower(Signals.of(self._run.folder).error, None)
            )
        return evals_of(self._config, self._run, self._feed, rows)

    def _rows(self, feed: Feed, *, is_first: bool) -> Rows:
        data = self._config.data
        cache = shard_cache(self._run, data)
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


def evals_of(config: RunConfig, run: Run, feed: Feed, rows: Rows) -> Evals | None:
    """Return the eval set of a run: a set of its own, or a part of the rows; None without one."""
    data = config.data
    if feed.eval_tokens is not None:
        rows = Rows(feed.eval_tokens, shard_cache(run, data))
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


def shard_cache(run: Run, data: DataConfig) -> ShardCache:
    """Return where this machine keeps token shards of the storage root."""
    return ShardCache(storage.local_cache(run.root) / "tokens", int(data.cache_gb * 1e9))


def _seen_first(rows: Rows, *, streams: bool) -> Columns:
    """All rows, or of each source those of its first shard: an eval set is there from the start."""
    if not streams:
        return rows.columns
    sources = range(len(rows.plan.sources))
    return joined([shard for number in sources for shard in islice(rows.stream(number), 1)])
