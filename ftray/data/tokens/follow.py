"""Shards of which only some are on disk: made a little ahead of the trainer, deleted behind it."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Event

from ftray import storage
from ftray.config.data import DataConfig
from ftray.data.reading.files import Range
from ftray.data.tokens.demand import DemandGate, Reached, Shard, Signals, read_reached
from ftray.data.tokens.manifest import (
    ShardRecord,
    find_shard,
    published_ranges,
    shard_name,
    shards_with_tokens,
)
from ftray.data.tokens.pipeline import Job, made_on_cluster


def follow(
    job: Job, signals: Signals, data: DataConfig, tasks: int, source: int, stopped: Event
) -> None:
    """Make what a run needs next of one source, until it is stopped.

    Each source by itself: a long range of one that waits for the trainer must not keep back what
    the trainer waits for of another. So a resumed run is waited for: a long range that comes later
    would keep back the one where it goes on.
    """
    gate = DemandGate(signals.reached, len(job.plan.sources), data.shards_ahead)
    job = replace(job, recipe=replace(job.recipe, gate=gate))
    own = {part.number: part for part in job.ranges if part.source == source}
    is_resumed = find_shard(job.folder, min(own), 0) is not None
    known = published_ranges(job.folder, own) if is_resumed else {}
    while not stopped.is_set():
        reached = read_reached(signals.reached, len(job.plan.sources))
        missing: list[int] = []
        if reached.is_told or not is_resumed:
            missing = _missing(_need(job, source, reached, data.shards_ahead), known, job.folder)
        parts = [own[number] for number in missing]
        for part, made in made_on_cluster(job, parts, known, tasks, stopped):
            known[part.number] = made
        if not missing:
            stopped.wait(_wait_seconds(job))


def sweep(job: Job, signals: Signals, data: DataConfig, stopped: Event) -> None:
    """Delete the tokens that a run has passed, until it is stopped; the rows' columns stay.

    So do the tokens of each source's first shard, if eval rows were set aside of it.
    """
    sources = range(len(job.plan.sources))
    kept = {(job.plan.ranges_of(n)[0], 0) for n in sources} if data.eval_fraction else set()
    while not stopped.wait(_wait_seconds(job)):
        reached = read_reached(signals.reached, len(sources))
        needs = [_need(job, source, reached, data.shards_ahead) for source in sources]
        for shard in shards_with_tokens(job.folder) - kept:
            if not any(need.has(*shard) for need in needs):
                storage.delete(storage.join(job.folder, shard_name(*shard)))


@dataclass(frozen=True)
class _Need:
    """The shards of a source that a run needs now or soon; `start` is the first of its range.

    `ranges` are in the order in which they are needed.
    """

    ranges: dict[int, None]
    start: Shard

    def has(self, number: int, part: int) -> bool:
        """Say whether a shard is needed."""
        is_passed = number == self.start[0] and part < self.start[1]
        return number in self.ranges and not is_passed

    def lacks(
        self, number: int, shards: list[ShardRecord] | None, there: Collection[Shard]
    ) -> bool:
        """Say whether a range has to be made, for the first time or again."""
        if number not in self.ranges:
            return False
        return shards is None or any(
            self.has(number, shard.part) and (number, shard.part) not in there for shard in shards
        )


def _missing(need: _Need, known: Mapping[int, list[ShardRecord]], folder: str) -> list[int]:
    there = shards_with_tokens(folder)
    return [number for number in need.ranges if need.lacks(number, known.get(number), there)]


def _need(job: Job, source: int, reached: Reached, ahead: int) -> _Need:
    """Go from the first range that is needed to `ahead` shards behind the last, in a circle."""
    own = [part for part in job.ranges if part.source == source]
    first, last = reached.first[source], reached.last[source]
    numbers = [part.number for part in own]
    start = numbers.index(first[0]) if first else 0
    end = numbers.index(last[0]) if last else start
    stretch = (end - start) % len(own) + 1 + math.ceil(ahead / _shards_a_range(job, own))
    ranges = dict.fromkeys(numbers[(start + n) % len(own)] for n in range(min(stretch, len(own))))
    has_wrapped = (first and last and (end, last[1]) < (start, first[1])) or (
        len(own) > 1 and stretch > len(own)
    )
    return _Need(ranges, (numbers[start], 0 if has_wrapped or not first else first[1]))


def _shards_a_range(job: Job, own: Sequence[Range]) -> float:
    tokens = sum(part.size for part in own) / _BYTES_A_TOKEN
    return max(1.0, tokens / job.recipe.shard_tokens / len(own))


def _wait_seconds(job: Job) -> float:
    return _REMOTE_LOOK_SECONDS if storage.is_uri(job.folder) else _LOOK_SECONDS


_LOOK_SECONDS = 0.5
_REMOTE_LOOK_SECONDS = 3.0
_BYTES_A_TOKEN = 4  # of text, about
