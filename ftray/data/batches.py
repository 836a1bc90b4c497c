"""Global batches as a function of (rows, config, seed, step), and their tensors.

Nothing here knows of workers or time: who asks for batch `n`, and what was asked before, makes no
difference, so a run continues on any number of workers where another stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ftray.config.run import DataConfig, TrainConfig
from ftray.data.chat import Tokens
from ftray.data.packing import pack
from ftray.data.shards import Flags, Ints
from ftray.errors import DataError

Pack = list[int]  # row numbers, in the order in which their tokens follow each other

NO_LABEL = -100  # torch's cross-entropy ignores it


class TokenRows(Protocol):
    """Tokenized rows by number, from shards or from memory."""

    @property
    def lengths(self) -> Ints:
        """Tokens of each row, before any cut. [rows]"""

    @property
    def first_label(self) -> Ints:
        """Index of each row's first learned token, its length where there is none. [rows]"""

    def ids(self, row: int) -> Ints:
        """Token ids of a row. [tokens]"""

    def trained(self, row: int) -> Flags:
        """Which tokens of a row are learned. [tokens]"""


class MemoryRows:
    """Tokenized rows that were never in a shard: a few, for an eval."""

    def __init__(self, rows: Sequence[Tokens]) -> None:
        self._ids = [np.array(row.ids, np.int32) for row in rows]
        self._trained = [np.array(row.trained, np.bool_) for row in rows]
        firsts = [int(row.argmax()) if row.any() else len(row) for row in self._trained]
        self.lengths: Ints = np.array([len(row) for row in self._ids], np.int32)
        self.first_label: Ints = np.array(firsts, np.int32)

    def ids(self, row: int) -> Ints:
        """Token ids of a row. [tokens]"""
        return self._ids[row]

    def trained(self, row: int) -> Flags:
        """Which tokens of a row are learned. [tokens]"""
        return self._trained[row]


@dataclass(frozen=True)
class Batch:
    """Tensors of one micro-batch, each [packs, longest] int64.

    `labels[b, t]` is the token that position t has to predict, NO_LABEL where none is learned: it
    is shifted already. Position ids restart at each row and at the padding, which separates them
    in attention without a mask. `tokens` counts without padding.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    label_tokens: int
    tokens: int


@dataclass(frozen=True)
class Cuts:
    """What `data.max_length` does to rows: `dropped` ones lose all their labels by it."""

    rows: int
    truncated: int
    dropped: int

    def __str__(self) -> str:
        return (
            f"of {self.rows} rows {self.truncated} are cut at data.max_length, {self.dropped} are"
            " left out since nothing to learn would be left of them"
        )


def cuts(rows: TokenRows, data: DataConfig) -> Cuts:
    """Count what `data.max_length` does to rows; DataError if it leaves nothing to learn."""
    kept = _kept(rows, data)
    truncated = int(np.count_nonzero(rows.lengths[kept] > data.max_length))
    return Cuts(len(rows.lengths), truncated, len(rows.lengths) - len(kept))


class Batches:
    """The global batches of a run, by step from 0.

    Each epoch goes through all rows that keep a label within `data.max_length`, in an order from
    (seed, epoch).
    """

    def __init__(self, rows: TokenRows, data: DataConfig, train: TrainConfig) -> None:
        self._data = data
        self._train = train
        self._lengths = np.minimum(rows.lengths, data.max_length).tolist()
        self._kept = _kept(rows, data)
        self._steps: dict[int, int] = {}
        self._latest: tuple[int, list[Pack]] = (-1, [])

    @cached_property
    def total_steps(self) -> int:
        """Steps of the whole run; where `epochs` is set each epoch's batches are counted."""
        if self._train.epochs is None:
            return self._train.max_steps or 0
        steps = sum(self.steps_per_epoch(epoch) for epoch in range(self._train.epochs))
        return min(steps, self._train.max_steps or steps)

    def steps_per_epoch(self, epoch: int) -> int:
        """Global batches of an epoch; with packing their number may differ by epoch."""
        if epoch not in self._steps:
            packs = len(self._epoch(epoch)) if self._data.packing else len(self._kept)
            self._steps[epoch] = -(-packs // self._train.global_batch_size)
        return self._steps[epoch]

    def epoch_of(self, step: int) -> int:
        """Return the epoch, from 0, that a step is in."""
        return self._locate(step)[0]

    def packs(self, step: int) -> list[Pack]:
        """Return the packs of a global batch in their order; an epoch's last may have fewer."""
        epoch, within = self._locate(step)
        size = self._train.global_batch_size
        return self._epoch(epoch)[within * size : (within + 1) * size]

    def _locate(self, step: int) -> tuple[int, int]:
        epoch = 0
        while step >= (steps := self.steps_per_epoch(epoch)):
            step -= steps
            epoch += 1
        return epoch, step

    def _epoch(self, epoch: int) -> list[Pack]:
        """Make the packs of an epoch; the latest is kept."""
        if self._latest[0] != epoch:
            order = self._kept[_permutation(len(self._kept), self._train.seed, epoch, "rows")]
            packs = _packs(self._lengths, self._data, order.tolist())
            if self._data.packing:  # best-fit leaves the emptier packs at the end
                shuffled = _permutation(len(packs), self._train.seed, epoch, "packs")
                packs = [packs[number] for number in shuffled.tolist()]
            self._latest = (epoch, packs)
        return self._latest[1]


def eval_packs(rows: TokenRows, data: DataConfig) -> list[Pack]:
    """Return the packs of an eval set: as in training, in the order of the rows."""
    lengths = np.minimum(rows.lengths, data.max_length).tolist()
    return _packs(lengths, data, _kept(rows, data).tolist())


def collate(rows: TokenRows, packs: Sequence[Pack], max_length: int) -> Batch:
    """Lay packs side by side, padded to the longest of them; rows are cut to `max_length`."""
    lengths = [np.minimum(rows.lengths[chosen], max_length).tolist() for chosen in packs]
    longest = max(sum(row_lengths) for row_lengths in lengths)
    input_ids = np.zeros((len(packs), longest), np.int64)
    labels = np.full((len(packs), longest), NO_LABEL, np.int64)
    position_ids = np.zeros((len(packs), longest), np.int64)
    for number, (chosen, row_lengths) in enumerate(zip(packs, lengths, strict=True)):
        start = 0
        for row, length in zip(chosen, row_lengths, strict=True):
            end = start + length
            ids, trained = rows.ids(row)[:length], rows.trained(row)[:length]
            input_ids[number, start:end] = ids
            labels[number, start : end - 1] = np.where(trained[1:], ids[1:], NO_LABEL)
            position_ids[number, start:end] = np.arange(length)
            start = end
        position_ids[number, start:] = np.arange(longest - start)
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(labels),
        torch.from_numpy(position_ids),
        label_tokens=int(np.count_nonzero(labels != NO_LABEL)),
        tokens=sum(map(sum, lengths)),
    )


def _kept(rows: TokenRows, data: DataConfig) -> npt.NDArray[np.int64]:
    """Return the rows of which a label is left within `max_length`."""
    kept = np.flatnonzero(rows.first_label < np.minimum(rows.lengths, data.max_length))
    if not len(kept):
        raise DataError(
            f"no row has a token to learn within data.max_length={data.max_length}",
            f"raise data.max_length: the longest row has {rows.lengths.max(initial=0)} tokens",
        )
    return kept


def _packs(lengths: list[int], data: DataConfig, order: list[int]) -> list[Pack]:
    return pack(lengths, data.max_length, order) if data.packing else [[row] for row in order]


def _permutation(size: int, seed: int, epoch: int, purpose: str) -> npt.NDArray[np.int64]:
    """Order by random keys: NumPy may change `permutation`, but never this stream."""
    stream = np.random.PCG64([seed, epoch, *purpose.encode()])
    return np.argsort(stream.random_raw(size), kind="stable")
