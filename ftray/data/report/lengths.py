"""Numbers of tokens: their spread, their histogram, what is unusual, and how they fill batches."""

from dataclasses import dataclass

import numpy as np

from ftray.config.data import DataConfig, sources_of
from ftray.config.run import TrainConfig
from ftray.data.batching.batches import EpochBatches
from ftray.data.batching.mixture import counts, permutation
from ftray.data.batching.packing import pack
from ftray.data.batching.samples import Samples
from ftray.data.tokens.columns import Ints


@dataclass(frozen=True)
class Spread:
    """Where values lie, in tokens."""

    min: int
    p5: int
    median: int
    mean: float
    p95: int
    p99: int
    max: int


@dataclass(frozen=True)
class Histogram:
    """Bar i counts the values from `i * width` to below `(i + 1) * width`.

    Where `is_open`, the last bar has all values from its start on.
    """

    width: int
    counts: list[int]
    is_open: bool


@dataclass(frozen=True)
class Usual:
    """The range that almost every value of a set lies in."""

    least: float
    most: float


@dataclass(frozen=True)
class Filling:
    """How an epoch's rows fill its batches; shares are of all positions, from 0 to 1.

    `packed` is the share with a token when rows are packed to `max_length`, `padding` the share
    without one when they are not.
    """

    packing: bool
    packs: int
    packed: float
    padding: float
    steps: int


def spread(values: Ints) -> Spread | None:
    """Describe values; None where there are none."""
    if not len(values):
        return None
    low, p5, middle, p95, p99, high = np.percentile(
        values, [0, 5, 50, 95, 99, 100], method="inverted_cdf"
    ).tolist()
    return Spread(low, p5, middle, round(float(values.mean()), 1), p95, p99, high)


def histogram(values: Ints) -> Histogram:
    """Count values in at most 40 bars of a round width; what is far out shares the last bar."""
    if not len(values):
        return Histogram(1, [], is_open=False)
    usual = int(np.percentile(values, 99.5, method="inverted_cdf"))
    width = _round_up(usual / (_BARS - 2))
    # behind the usual values one more bar has all that are beyond
    bars = min(usual // width + 2, int(values.max()) // width + 1)
    counts = np.bincount(np.minimum(values // width, bars - 1), minlength=bars)
    return Histogram(width, counts.tolist(), is_open=int(values.max()) >= bars * width)


def usual(values: Ints) -> Usual:
    """Return the range outside of which a value is an outlier.

    Lengths spread by factors, so their logarithms are judged: by the modified z-score, which bad
    values cannot shift (Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers"), at 5
    instead of their 3.5, since a million rows have some at 3.5. Of two kinds of rows the rarer one
    is no outlier: the range reaches twice as far as 80% of the values.
    """
    logs = np.log(np.maximum(values, 1))
    middle = float(np.median(logs))
    deviation = max(float(np.median(np.abs(logs - middle))) * 1.4826, _LEAST_DEVIATION)
    few, many = np.percentile(values, [10, 90]).tolist()
    least, most = np.exp([middle - 5 * deviation, middle + 5 * deviation]).tolist()
    return Usual(min(least, few / 2), max(most, many * 2))


def filling(samples: Samples, data: DataConfig, train: TrainConfig) -> Filling:
    """Lay samples out as an epoch would; of a long epoch a part stands for the whole."""
    epoch_rows = sum(counts(_sizes(samples, data), sources_of(data.train)))
    tried = min(len(samples), _TRIED)
    if not tried:
        return Filling(data.packing, 0, 0.0, 0.0, 0)
    order = permutation(len(samples), train.seed, 0, "quality")[:tried]
    lengths = samples.length[order]
    packs = len(pack(lengths.tolist(), data.max_length, range(tried)))
    micro = train.micro_batch_size
    return Filling(
        packing=data.packing,
        packs=round(packs * epoch_rows / tried),
        packed=float(lengths.sum()) / (packs * data.max_length),
        padding=_padding(lengths, _ROWS_TOGETHER if micro == "auto" else micro),
        steps=_steps(samples, data, train, epoch_rows * (packs / tried if data.packing else 1)),
    )


_BARS = 40
_TRIED = 300_000  # rows; whole epochs up to this size are packed as training will
_ROWS_TOGETHER = 8  # what a micro-batch often is
_LEAST_DEVIATION = 0.3  # equal lengths are no reason to wonder at one of up to 4 times theirs


def _round_up(width: float) -> int:
    """Return the next of 1, 2, 5, 10, 20, 50, …"""
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power >= width:
                return digit * power
        power *= 10


def _sizes(samples: Samples, data: DataConfig) -> list[int]:
    sizes = np.bincount(samples.source, minlength=len(sources_of(data.train)))
    return [int(size) for size in sizes]


def _steps(samples: Samples, data: DataConfig, train: TrainConfig, units: float) -> int:
    """Count the first epoch's batches; from about how many packs or rows it has if it is long."""
    if len(samples) <= _TRIED:
        return EpochBatches(samples, data, train).steps_per_epoch(0)
    return -(-round(units) // train.global_batch_size)


def _padding(lengths: Ints, together: int) -> float:
    """Share of positions without a token when rows, as they come, are padded to the longest."""
    together = min(together, len(lengths))
    whole = lengths[: len(lengths) // together * together].reshape(-1, together)
    positions = int(whole.max(axis=1).sum()) * together
    return 1.0 - int(whole.sum()) / positions
