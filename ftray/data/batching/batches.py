"""Global batches as a function of (rows, config, seed, step).

Nothing here knows of workers or time: who asks for batch `n`, and what was asked before, makes no
difference, so a run continues on any number of workers where another stopped.
"""

from functools import cached_property
from typing import Protocol

import numpy as np

from ftray.config.data import DataConfig, sources_of
from ftray.config.run import TrainConfig
from ftray.data.batching.mixture import counts, drawn, permutation
from ftray.data.batching.packing import pack
from ftray.data.batching.samples import Pack, Samples
from ftray.data.tokens.columns import Longs


class Batches(Protocol):
    """The global batches of a run, by step from 0."""

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""

    def epoch_of(self, step: int) -> int:
        """Return the epoch, from 0, that a step is in."""

    def packs(self, step: int) -> list[Pack]:
        """Return the packs of a global batch in their order."""


class EpochBatches:
    """Batches of rows that are all there: each epoch in an order from (seed, epoch).

    An epoch takes from each source what the mixture says; its last batch may have fewer packs.
    """

    def __init__(self, samples: Samples, data: DataConfig, train: TrainConfig) -> None:
        self._samples = samples
        self._data = data
        self._train = train
        sources = sources_of(data.train)
        self._rows = [np.flatnonzero(samples.source == number) for number in range(len(sources))]
        self.rows_an_epoch = counts([len(rows) for rows in self._rows], sources)
        self._steps: dict[int, int] = {}
        self._latest: tuple[int, list[list[int]]] = (-1, [])

    @cached_property
    def total_steps(self) -> int:
        """Steps of the whole run; where `epochs` is set each epoch's batches are counted."""
        if self._train.epochs is None:
            return self._train.max_steps or 0
        steps = sum(self.steps_per_epoch(epoch) for epoch in range(self._train.epochs))
        return min(steps, self._train.max_steps or steps)

    @property
    def epochs(self) -> float:
        """How often the run goes through an epoch; not whole where `max_steps` ends it."""
        last = self.epoch_of(self.total_steps - 1)
        within = self.total_steps - sum(self.steps_per_epoch(epoch) for epoch in range(last))
        return last + within / self.steps_per_epoch(last)

    def steps_per_epoch(self, epoch: int) -> int:
        """Global batches of an epoch; with packing their number may differ by epoch."""
        if epoch not in self._steps:
            packs = len(self._epoch(epoch)) if self._data.packing else sum(self.rows_an_epoch)
            self._steps[epoch] = -(-packs // self._train.global_batch_size)
        return self._steps[epoch]

    def epoch_of(self, step: int) -> int:
        """Return the epoch, from 0, that a step is in."""
        return self._locate(step)[0]

    def packs(self, step: int) -> list[Pack]:
        """Return the packs of a global batch in their order; an epoch's last may have fewer."""
        epoch, within = self._locate(step)
        size = self._train.global_batch_size
        chosen = self._epoch(epoch)[within * size : (within + 1) * size]
        return [[self._samples[number] for number in numbers] for numbers in chosen]

    def _locate(self, step: int) -> tuple[int, int]:
        epoch = 0
        while step >= (steps := self.steps_per_epoch(epoch)):
            step -= steps
            epoch += 1
        return epoch, step

    def _epoch(self, epoch: int) -> list[list[int]]:
        """Make the packs of an epoch; the latest is kept."""
        if self._latest[0] != epoch:
            chosen = self._drawn(epoch)
            order = chosen[permutation(len(chosen), self._train.seed, epoch, "rows")]
            packs = packed(self._samples, order, self._data, (self._train.seed, epoch))
            self._latest = (epoch, packs)
        return self._latest[1]

    def _drawn(self, epoch: int) -> Longs:
        """Return the samples that the mixture takes for an epoch, source by source."""
        sources = enumerate(zip(self._rows, self.rows_an_epoch, strict=True))
        return np.concatenate(
            [
                rows[drawn(len(rows), count, self._train.seed, epoch, number)]
                for number, (rows, count) in sources
            ]
        )


def packed(
    samples: Samples, order: Longs, data: DataConfig, seeds: tuple[int, int]
) -> list[list[int]]:
    """Put samples, by number and in the given order, into packs that are shuffled by the seeds."""
    if not data.packing:
        return [[number] for number in order.tolist()]
    packs = pack(samples.length.tolist(), data.max_length, order.tolist())
    # best-fit leaves the emptier packs at the end
    shuffled = permutation(len(packs), *seeds, "packs")
    return [packs[number] for number in shuffled.tolist()]


def eval_packs(samples: Samples, data: DataConfig) -> list[Pack]:
    """Return the packs of an eval set: as in training, in the order of the rows."""
    order = range(len(samples))
    lengths = samples.length.tolist()
    packs = pack(lengths, data.max_length, order) if data.packing else [[n] for n in order]
    return [[samples[number] for number in numbers] for numbers in packs]
