"""Token shards made in the background, while a run already trains on the first ones."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Event, Thread

from ftray.config.data import DataConfig, SourceConfig
from ftray.data.reading.files import Range
from ftray.data.tokens.demand import EndGate, Signals, release, tell
from ftray.data.tokens.follow import follow, sweep
from ftray.data.tokens.manifest import find_token_set, published_ranges
from ftray.data.tokens.pipeline import Job, complete, made_on_cluster
from ftray.errors import FtrayError

logger = logging.getLogger(__name__)


class Making:
    """The threads that make a job's shards in the order in which they will be trained on.

    Kept ones are made at full speed, to the end. Others are made `data.shards_ahead` of the trainer
    and deleted behind it. What goes wrong is told to the workers, who raise it.
    """

    def __init__(
        self,
        job: Job,
        signals: Signals,
        data: DataConfig,
        sources: Sequence[SourceConfig],
        tasks: int,
    ) -> None:
        self._signals = signals
        self._stopped = Event()
        until_the_end = replace(job, recipe=replace(job.recipe, gate=EndGate(signals.reached)))
        order = _interleaved(job, sources)
        work = [lambda: _make_all(until_the_end, order, tasks, self._stopped)]
        if not data.keep_shards:
            each = max(1, tasks // len(sources))
            work = [
                _following(job, signals, data, each, n, self._stopped) for n in range(len(sources))
            ]
            work.append(lambda: sweep(job, signals, data, self._stopped))
        self._threads = [
            Thread(target=self._guarded, args=(one,), name="token shards", daemon=True)
            for one in work
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Make no more, and wait for the shards that are being made."""
        self._stopped.set()
        for thread in self._threads:
            while thread.is_alive():
                release(self._signals.reached)  # again: a dying worker may have spoken after it
                thread.join(_SECONDS)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # a thread's edge: the workers raise it
            if not self._stopped.is_set():
                if not isinstance(error, FtrayError):
                    logger.exception("making token shards failed")
                tell(self._signals.error, error)


_SECONDS = 2.0


def _make_all(job: Job, order: Sequence[Range], tasks: int, stopped: Event) -> None:
    if find_token_set(job.folder):
        return
    shards = published_ranges(job.folder)
    missing = [part for part in order if part.number not in shards]
    for part, made in made_on_cluster(job, missing, shards, tasks, stopped):
        shards[part.number] = made
    if not stopped.is_set():
        found = complete(job, shards)
        logger.info("all token shards are made: %d rows, %d tokens", found.rows, found.tokens)


def _following(
    job: Job, signals: Signals, data: DataConfig, tasks: int, source: int, stopped: Event
) -> Callable[[], None]:
    return lambda: follow(job, signals, data, tasks, source, stopped)


def _interleaved(job: Job, sources: Sequence[SourceConfig]) -> list[Range]:
    """Order all ranges as a run goes through them: each source by its share of a window."""
    passed = [0.0] * len(sources)
    share = job.plan.shares(sources)
    begins: list[tuple[float, int]] = []
    for part in job.ranges:
        begins.append((passed[part.source] / share[part.source], part.number))
        passed[part.source] += max(1, part.size)
    return [job.ranges[number] for _, number in sorted(begins)]
