"""Rows of several trials put together into micro-batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ftray.data.batching.samples import Pack


@dataclass(frozen=True)
class Row:
    """One pack of one trial's batch; `seed` is of its dropout."""

    owner: int
    pack: Pack
    seed: int
    length: int

    @classmethod
    def of(cls, owner: int, pack: Pack, seed: int) -> "Row":
        """Measure the pack."""
        return cls(owner, pack, seed, sum(sample.length for sample in pack))


def joined(rows: Sequence[Row], most_tokens: int, overhead: int) -> list[list[Row]]:
    """Cut rows into micro-batches so that the least time is lost.

    Rows of similar length come together, since each is padded to the longest. A micro-batch costs
    its tokens, padding included, and besides as much as `overhead` tokens; it has at most
    `most_tokens`, or one row.
    """
    ordered = sorted(rows, key=lambda row: -row.length)  # stable: equal ones stay in turn
    least = np.full(len(ordered) + 1, 2**62)  # cost of the first n rows
    first = np.zeros(len(ordered) + 1, np.int64)  # where the last micro-batch of those begins
    least[0] = 0
    for start, row in enumerate(ordered):
        longest = max(1, row.length)
        most = min(len(ordered) - start, max(1, most_tokens // longest))
        ends = slice(start + 1, start + most + 1)
        costs = least[start] + np.arange(1, most + 1) * longest + overhead
        first[ends] = np.where(costs < least[ends], start, first[ends])
        least[ends] = np.minimum(costs, least[ends])
    batches, end = [], len(ordered)
    while end:
        batches.append(ordered[first[end] : end])
        end = int(first[end])
    return batches[::-1]
