"""How many rows each source gives to an epoch, and which: a function of the seed alone."""

from collections.abc import Sequence

import numpy as np

from ftray.config.data import SourceConfig
from ftray.data.tokens.columns import Longs


def counts(sizes: Sequence[int], sources: Sequence[SourceConfig]) -> list[int]:
    """Return how many rows of each source are in an epoch; `sizes` says how many there are.

    With weights an epoch has as many rows as all sources together, shared out by weight.
    """
    weights = [source.weight for source in sources]
    if any(weights):
        total, rows = sum(weight or 0.0 for weight in weights), sum(sizes)
        return [
            max(1, round(rows * (weight or 0.0) / total)) if size else 0
            for weight, size in zip(weights, sizes, strict=True)
        ]
    return [_count(size, source) for size, source in zip(sizes, sources, strict=True)]


def _count(size: int, source: SourceConfig) -> int:
    if not size:
        return 0
    if source.samples is not None:
        return source.samples
    return max(1, round(size * (source.epochs or 1.0)))


def drawn(size: int, count: int, seed: int, epoch: int, source: int) -> Longs:
    """Return which of a source's `size` rows are in an epoch that takes `count` of them.

    A source is gone through in one permutation after another, and an epoch begins where the one
    before it ended: no row comes again before all others have come.
    """
    cycles = range(epoch * count // size, -(-(epoch + 1) * count // size)) if count else range(0)
    order = [permutation(size, seed, cycle, f"source {source}") for cycle in cycles]
    start = epoch * count - (cycles[0] * size if count else 0)
    return np.concatenate([np.empty(0, np.int64), *order])[start : start + count]


def permutation(size: int, seed: int, epoch: int, purpose: str) -> Longs:
    """Order by random keys: NumPy may change `permutation`, but never this stream."""
    stream = np.random.PCG64([seed, epoch, *purpose.encode()])
    return np.argsort(stream.random_raw(size), kind="stable")
