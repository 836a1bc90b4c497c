"""Forward and backward passes over the rows of several trials at once."""

import gc
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ftray.data.batching.collation import Batch, collate, lengthened
from ftray.data.batching.samples import Pack, Sample
from ftray.data.tokens.columns import TokenRows
from ftray.errors import TrainError
from ftray.model.entropy import Owners
from ftray.model.loss import decoder_states, owned_losses
from ftray.model.transfer import to_device
from ftray.train.step import Counts
from ftray.tune.packed.bank import Bank, Spot
from ftray.tune.packed.graphs import JointGraphs
from ftray.tune.packed.joint import Row, joined
from ftray.tune.packed.stack import Adapter

logger = logging.getLogger(__name__)

# What a micro-batch costs besides its tokens, as tokens: launches on a GPU (an 8B base takes as
# long for 1,000 tokens as for 500), reading the weights on a CPU.
_OVERHEAD = {"cpu": 48, "cuda": 512}


@dataclass(frozen=True)
class Work:
    """What one trial wants computed: packs of a table, each with the seed of its dropout."""

    adapter: Adapter
    packs: list[Pack]
    seeds: list[int]


@dataclass(frozen=True)
class Found:
    """What the passes over one trial's work came to; the loss is a mean over label tokens."""

    loss: float
    counts: Counts


@dataclass(frozen=True)
class Sums:
    """What passes over several trials' works came to, in their order."""

    losses: list[float]
    counts: list[Counts]
    too_large: set[int]  # works of which a single row does not fit into memory

    @property
    def tokens(self) -> int:
        """Of all works, without padding."""
        return sum(counts.tokens for counts in self.counts)

    def of(self, number: int) -> Found:
        """Return one work's part."""
        return Found(self.losses[number], self.counts[number])


class Passes:
    """Runs works jointly; when memory runs out, again in smaller micro-batches."""

    def __init__(
        self,
        model: PreTrainedModel,
        bank: Bank,
        most_tokens: int,
        graphs: JointGraphs | None = None,
    ) -> None:
        """Trials learn through graphs, if there are any, where they pay."""
        self._model, self._bank, self._graphs = model, bank, graphs
        self._device = model.device
        self.most_tokens = most_tokens

    def learn(self, table: TokenRows, works: Sequence[Work]) -> Sums:
        """Sum up each work's gradient of its mean loss over label tokens."""
        self._model.train()
        return self._summed(table, works)

    @torch.no_grad()
    def measure(self, table: TokenRows, works: Sequence[Work]) -> Sums:
        """Measure each work's mean loss over label tokens."""
        self._model.eval()
        return self._summed(table, works)

    def _summed(self, table: TokenRows, works: Sequence[Work]) -> Sums:
        for stack in self._bank.stacks:
            stack.refresh()
        counts, too_large = _counts(table, works), set[int]()
        labels = torch.tensor([max(1, count.label_tokens) for count in counts])  # [works]
        shares = (1 / labels).to(self._device)
        while True:
            rows = _rows(works, too_large)
            length = self._row_length(rows)
            batches = self._batches(rows, works, length)
            found = self._run(table, batches, works, shares, length)
            if isinstance(found, Tensor):
                return Sums((found.cpu() / labels).tolist(), counts, too_large)
            self._make_room(found, too_large)

    def _row_length(self, rows: Sequence[Row]) -> int | None:
        """What rows are padded to, to be replayed; None: they are launched as they are."""
        if self._graphs is None or not torch.is_grad_enabled():
            return None
        return self._graphs.row_length([row.length for row in rows], self.most_tokens)

    def _batches(
        self, rows: list[Row], works: Sequence[Work], length: int | None
    ) -> list[list[Row]]:
        if length is not None:
            rows = [replace(row, length=length) for row in rows]
        overhead = _OVERHEAD[self._device.type]
        batches = joined(rows, self.most_tokens, overhead)
        return [_placed(batch, works) for batch in batches]

    def _run(
        self,
        table: TokenRows,
        batches: Sequence[list[Row]],
        works: Sequence[Work],
        shares: Tensor,
        length: int | None,
    ) -> Tensor | list[Row]:
        """Return the summed losses [works], or the micro-batch for which memory did not suffice."""
        for stack in self._bank.stacks:
            stack.gradients.zero_()
        sums = torch.zeros(len(works), dtype=torch.float64, device=self._device)
        graphs = None if length is None else self._graphs
        for rows in batches:
            batch = lengthened(collate(table, [row.pack for row in rows]), length)
            try:
                sums += self._pass(batch, rows, works, shares, graphs)
            except torch.OutOfMemoryError:
                return rows
            except TrainError as error:  # of what cannot be recorded
                if graphs is None or graphs.is_wanted:
                    raise
                logger.warning("%s", error.message)
                return rows
        return sums

    def _pass(
        self,
        batch: Batch,
        rows: list[Row],
        works: Sequence[Work],
        shares: Tensor,
        graphs: JointGraphs | None,
    ) -> Tensor:
        """Sum the losses; with gradients enabled also those of each work's loss · its share."""
        owners, seeds = [works[row.owner].adapter for row in rows], [row.seed for row in rows]
        whose = Owners(torch.tensor([row.owner for row in rows]), len(works))

        def learn(hidden: Tensor) -> Tensor:
            losses = owned_losses(self._model, hidden, batch.labels, whose)  # [works]
            if losses.requires_grad:
                losses.backward(shares)
            return losses.detach().double()

        if graphs is not None:
            return graphs.learn(batch, owners, seeds, learn)
        self._bank.route(owners, seeds)
        ids = to_device(batch.input_ids, self._device)
        return learn(decoder_states(self._model, ids, batch.position_ids))

    def _make_room(self, failed: list[Row], too_large: set[int]) -> None:
        """Replay no more; if that was not it halve the micro-batches, or leave out the trial whose
        single row is too large.
        """
        graphs, self._graphs = self._graphs, None
        if graphs is not None:
            graphs.drop()
        gc.collect()  # what the failed pass held in cycles
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if graphs is not None:
            logger.info("joint micro-batches are launched from now on, and not replayed")
            return
        if len(failed) == 1:
            too_large.add(failed[0].owner)
            return
        tokens = len(failed) * max(row.length for row in failed)
        self.most_tokens = min(self.most_tokens, tokens) // 2
        logger.info("out of memory: joint micro-batches of %d tokens now", self.most_tokens)


def _rows(works: Sequence[Work], left_out: set[int]) -> list[Row]:
    """All rows; trials take turns, so that they come evenly where lengths are equal."""
    turns = max((len(work.packs) for work in works), default=0)
    return [
        Row.of(number, work.packs[turn], work.seeds[turn])
        for turn in range(turns)
        for number, work in enumerate(works)
        if turn < len(work.packs) and number not in left_out
    ]


def _placed(rows: list[Row], works: Sequence[Work]) -> list[Row]:
    """Put a micro-batch in the order in which the bank wants rows."""
    counts = Counter(row.owner for row in rows)
    return sorted(rows, key=lambda row: Spot.of(works[row.owner].adapter, counts[row.owner]))


def _counts(table: TokenRows, works: Sequence[Work]) -> list[Counts]:
    return [
        Counts(
            tokens=sum(sample.length for pack in work.packs for sample in pack),
            label_tokens=sum(_learned(table, sample) for pack in work.packs for sample in pack),
            samples=sum(len(pack) for pack in work.packs),
        )
        for work in works
    ]


def _learned(table: TokenRows, sample: Sample) -> int:
    """Count a sample's label tokens: its first token is predicted from nothing."""
    trained = table.trained(sample.key)[sample.start + 1 : sample.start + sample.length]
    return int(np.count_nonzero(trained))
