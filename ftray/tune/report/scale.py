"""The vertical scales of a parallel-coordinates plot: where a value lies, from 0 to 1."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from matplotlib.ticker import LogLocator, MaxNLocator

from ftray.config.space import DrawConfig
from ftray.tune.report.words import shown


@dataclass(frozen=True)
class Tick:
    """A place on a scale, and what is written there."""

    place: float
    text: str


class Scale(Protocol):
    """Where values lie."""

    @property
    def ticks(self) -> list[Tick]:
        """What is written beside the axis."""

    def place(self, value: object) -> float:
        """Return where a value lies, from 0 to 1."""


@dataclass(frozen=True)
class Options:
    """Each option at the same distance; numbers in their order."""

    options: list[object]

    @property
    def ticks(self) -> list[Tick]:
        """Every option."""
        return [Tick(self.place(option), shown(option)) for option in self.options]

    def place(self, value: object) -> float:
        """Half a step is left at both ends."""
        return (self.options.index(value) + 0.5) / len(self.options)


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`."""

    low: float
    high: float
    is_log: bool
    is_whole: bool = False

    @property
    def ticks(self) -> list[Tick]:
        """Round numbers within the range."""
        values = self._locator().tick_values(self.low, self.high)
        places = [(self.place(float(value)), float(value)) for value in values if self._has(value)]
        return [
            Tick(place, self._text(value)) for place, value in places if -_NEAR < place < 1 + _NEAR
        ]

    def place(self, value: object) -> float:
        """By its logarithm where the range is logarithmic."""
        number, low, high = cast(float, value), self.low, self.high
        if self.is_log:
            number, low, high = math.log(number), math.log(low), math.log(high)
        return (number - low) / (high - low)

    def _has(self, value: float) -> bool:
        return not self.is_log or value > 0

    def _text(self, value: float) -> str:
        """On one axis all numbers look alike."""
        if self.is_log and self.low < _SMALL:
            digits, _, exponent = f"{value:.0e}".partition("e")
            return f"{digits}e{int(exponent)}"
        return shown(round(value) if self.is_whole else value)

    def _locator(self) -> LogLocator | MaxNLocator:
        if not self.is_log:
            return MaxNLocator(nbins=_TICKS, integer=self.is_whole)
        is_wide = math.log10(self.high / self.low) > _WIDE
        return LogLocator(subs=(1.0,) if is_wide else (1.0, 2.0, 5.0), numticks=20)


_NEAR = 1e-6  # room for rounding at both ends
_SMALL = 1e-2
_TICKS = 6
_WIDE = 2.2  # powers of ten; with 2 and 5 of each the labels would touch


def scale_of(draw: DrawConfig, values: Sequence[object]) -> Scale:
    """Return the scale of a knob; values that a scheduler led out of its range widen it."""
    if draw.options is not None:
        are_numbers = all(
            isinstance(option, int | float) and not isinstance(option, bool)
            for option in draw.options
        )
        return Options(sorted(draw.options) if are_numbers else list(draw.options))
    numbers = [*draw.bounds, *(cast(float, value) for value in values)]
    return Range(min(numbers), max(numbers), draw.kind == "loguniform", draw.kind == "int")


def result_scale(results: Sequence[float], *, is_log: bool) -> Scale:
    """Return the scale of the search's metric."""
    low, high = min(results, default=0.0), max(results, default=1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
        is_log = False
    return Range(low, high, is_log)
