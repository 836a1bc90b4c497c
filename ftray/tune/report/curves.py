"""Learning curves of a search: every trial's result over its steps."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ftray.tune.report.look import (
    COLORS,
    GREY,
    LINES,
    RED,
    faded,
    failed,
    fates,
    png,
    said,
    set_scale,
)
from ftray.tune.report.words import shown, titles
from ftray.tune.results import SearchResult, TrialResult
from ftray.tune.winners import ranked

Curve = list[tuple[int, float]]
Rgba = tuple[float, float, float, float]


def curves(result: SearchResult) -> bytes:
    """Draw the metric over steps, the best trials in colours of their own; returns a PNG."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    best = ranked(result)[: len(COLORS)]
    drawn = [trial for trial in result.trials if _numbers(trial.curve)]
    _fit(axes, drawn)
    for trial in drawn:
        if trial not in best:
            color = RED if failed(trial) else GREY
            _draw(axes, trial, to_rgba(color, faded(len(drawn))), width=1.0)
    for place, trial in reversed(list(enumerate(best))):
        _draw(axes, trial, COLORS[place], width=2.0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(title=f"{result.name}: learning curves", xlabel="optimizer step")
    axes.set_ylabel(said(result.metric, result.mode))
    axes.grid(alpha=0.3)
    _explain(figure, axes, result, drawn, best)
    return png(figure)


def _fit(axes: Axes, trials: Sequence[TrialResult]) -> None:
    """Make room for what has a result; a diverging trial may leave the picture."""
    sound = [trial for trial in trials if not failed(trial)] or trials
    values = [value for trial in sound for _, value in _numbers(trial.curve)]
    set_scale(axes, values)
    if not values or min(values) == max(values):
        return
    low, high = min(values), max(values)
    if axes.get_yscale() == "log":
        room = (high / low) ** _ROOM
        axes.set_ylim(low / room, high * room)
    else:
        room = (high - low) * _ROOM
        axes.set_ylim(low - room, high + room)


_ROOM = 0.05


def _numbers(curve: Curve) -> Curve:
    """A diverged trial's last values are no numbers, and cannot be drawn."""
    return [(step, value) for step, value in curve if math.isfinite(value)]


def _draw(axes: Axes, trial: TrialResult, color: str | Rgba, width: float) -> None:
    curve = _numbers(trial.curve)
    steps, values = [step for step, _ in curve], [value for _, value in curve]
    style = LINES[trial.state]
    zorder = 2 + width
    axes.plot(steps, values, color=color, linestyle=style, linewidth=width, zorder=zorder)
    end = "x" if trial.state == "failed" else "o"  # all that is seen of one that reported once
    inside = "white" if trial.state == "stopped" else color
    axes.plot(steps[-1:], values[-1:], end, color=color, mfc=inside, markersize=5, zorder=zorder)


def _explain(
    figure: Figure,
    axes: Axes,
    result: SearchResult,
    drawn: Sequence[TrialResult],
    best: Sequence[TrialResult],
) -> None:
    """The best trials with their values at the right, and below what the lines mean."""
    named = titles(result.search.space)
    handles = [axes.plot([], [], color=COLORS[place], linewidth=2)[0] for place in range(len(best))]
    words = [f"{place}. {_described(trial, named)}" for place, trial in enumerate(best, start=1)]
    if handles:
        figure.legend(
            handles, words, loc="outside right upper", frameon=False, fontsize=8, title="the best"
        )
    if drawn:
        figure.legend(handles=fates(drawn), loc="outside lower center", ncols=4, frameon=False)


def _described(trial: TrialResult, named: dict[str, str]) -> str:
    values = [f"{named[key]} {shown(value)}" for key, value in trial.values.items() if key in named]
    return "\n    ".join([f"trial {trial.id}", *values[:_SEVERAL]])


_SEVERAL = 5
