"""What all pictures of a search share: colours that the colour-blind tell apart, scales, the file.

Better is always darker. The line says what became of a trial: whole, dashed where the scheduler
stopped it, dotted and ending in a cross where it failed.
"""

import io
import math
from collections.abc import Sequence
from typing import Literal

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ftray.tune.report.words import shown
from ftray.tune.results import TrialResult

# Okabe and Ito 2008, "Color Universal Design"
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
GREY, RED = "#9aa0a6", "#D55E00"
Line = Literal["-", "--", "-.", ":"]
LINES: dict[str, Line] = {
    "finished": "-",
    "stopped": "--",
    "failed": ":",
    "running": "-.",
    "pending": "-.",
}
_PIXELS_AN_INCH = 120


def png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_PIXELS_AN_INCH)
    return buffer.getvalue()


def failed(trial: TrialResult) -> bool:
    """Whether a trial has no result that could be drawn."""
    return trial.state == "failed" or trial.metric is None or not math.isfinite(trial.metric)


def faded(count: int) -> float:
    """How opaque one line of so many is: of many, those below are to be seen too."""
    return min(0.75, max(0.2, 15 / max(1, count)))


class Shades:
    """Colours for numbers; the low ones are dark, or the high ones."""

    def __init__(self, values: Sequence[float], dark: Literal["low", "high"]) -> None:
        steps = [index / 255 * _BRIGHTEST for index in range(256)]
        ordered = steps if dark == "low" else steps[::-1]
        colors = ListedColormap([colormaps["viridis"](step) for step in ordered])
        self._values = values
        self._norm, self._colors = _normalized(values), colors

    def explain(self, figure: Figure, axes: Axes, label: str) -> None:
        """Put a scale of the colours beside a plot."""
        bar = figure.colorbar(
            ScalarMappable(self._norm, self._colors), ax=axes, label=label, pad=0.01, fraction=0.04
        )
        if isinstance(self._norm, LogNorm):
            write_powers(bar.ax, self._values)

    def of(self, value: float) -> str:
        """Return a number's colour."""
        return to_hex(self._colors(float(self._norm(value))))


_BRIGHTEST = 0.9  # beyond it, viridis would vanish on white


def spans_powers(values: Sequence[float]) -> bool:
    """Whether values lie so far apart that they are read better on a logarithmic scale."""
    return min(values) > 0 and max(values) > _FAR * min(values)


_FAR = 5


def _normalized(values: Sequence[float]) -> Normalize:
    """Map values to shades; of equal ones each to the middle."""
    low, high = min(values), max(values)
    if low == high:
        return Normalize(low - 1, high + 1)
    return LogNorm(low, high) if spans_powers(values) else Normalize(low, high)


def said(metric: str, mode: str) -> str:
    """Name a metric and say which way it is better."""
    return f"{metric} ({'less' if mode == 'min' else 'more'} is better)"


def set_scale(axes: Axes, values: Sequence[float]) -> None:
    """Make a y axis logarithmic where its values ask for it, with ticks written as people do."""
    if not values or not spans_powers(values):
        return
    axes.set_yscale("log")
    write_powers(axes, values)


def write_powers(axes: Axes, values: Sequence[float]) -> None:
    """Write the ticks of a logarithmic y axis as people do; where there is room, 2 and 5 too."""
    is_wide = math.log10(max(values) / min(values)) > 2
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if is_wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(float(value))))
    axes.yaxis.set_minor_formatter(NullFormatter())


def fates(trials: Sequence[TrialResult], color: str = "black") -> list[Line2D]:
    """Return what a legend says about lines, for the fates that occur."""
    words = {"finished": "finished", "stopped": "stopped early", "failed": "failed"}
    words |= {"running": "not ended"}
    states = {"running" if trial.state == "pending" else trial.state for trial in trials}
    return [
        Line2D([], [], color=color, linestyle=LINES[state], label=word, marker=_mark(state))
        for state, word in words.items()
        if state in states
    ]


def _mark(state: str) -> str:
    return "x" if state == "failed" else ""
