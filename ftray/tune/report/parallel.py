"""Every trial as one line through all its values to its result (Inselberg 1985)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ftray.tune.report.look import (
    LINES,
    RED,
    Shades,
    faded,
    failed,
    fates,
    png,
    said,
    spans_powers,
)
from ftray.tune.report.scale import Options, Scale, Tick, result_scale, scale_of
from ftray.tune.report.words import titles
from ftray.tune.results import SearchResult, TrialResult
from ftray.tune.winners import ranked


def parallel(result: SearchResult) -> bytes:
    """Draw knobs as upright axes and trials as lines between them; returns a PNG."""
    trials = [trial for trial in result.trials if trial.values and not _is_unborn(trial)]
    drawing = _Drawing(result, trials)
    width = max(7.0, 1.35 * len(drawing.scales) + 3.0)
    figure = Figure(figsize=(width, 5.2), layout="constrained")
    axes = figure.subplots()
    best_last = ranked(result)[::-1]
    without = [trial for trial in trials if trial not in best_last]
    for index, trial in enumerate([*without, *best_last]):
        _draw(axes, drawing, trial, nudge=_nudge(index), is_best=trial in best_last[-1:])
    _dress(axes, drawing, f"{result.name}: every trial")
    if trials:
        figure.legend(handles=fates(trials), loc="outside lower center", ncols=4, frameon=False)
    if drawing.results:
        drawing.colors.explain(figure, axes, said(result.metric, result.mode))
    return png(figure)


class _Drawing:
    """The scales, the colours, and where lines without a result end."""

    def __init__(self, result: SearchResult, trials: Sequence[TrialResult]) -> None:
        self.trials = trials
        named, space = titles(result.search.space), result.search.space
        given = {
            key: [trial.values[key] for trial in trials if key in trial.values] for key in space
        }
        self.results = [t.metric for t in trials if t.metric is not None and not failed(t)]
        is_log = bool(self.results) and spans_powers(self.results)
        self.scales = [
            *(_Named(key, named[key], scale_of(space[key], given[key])) for key in space),
            _Named("", result.metric, result_scale(self.results, is_log=is_log)),
        ]
        self.is_partial = {key for key, values in given.items() if len(values) < len(trials)}
        dark: Literal["low", "high"] = "low" if result.mode == "min" else "high"
        self.colors = Shades(self.results or [0.0], dark)
        self.failed_at = 1 + _BEYOND if result.mode == "min" else -_BEYOND
        self.any_failed = any(failed(trial) for trial in trials)

    def places(self, trial: TrialResult, nudge: float) -> list[float]:
        """Where a trial's line crosses each axis; below the axis where it has no value."""
        crossed = []
        for named in self.scales[:-1]:
            if named.key not in trial.values:
                crossed.append(-_BEYOND + nudge)
                continue
            scale = named.scale
            beside = nudge if isinstance(scale, Options) else 0.0
            crossed.append(scale.place(trial.values[named.key]) + beside)
        end = self.failed_at if failed(trial) else self.scales[-1].scale.place(trial.metric)
        return [*crossed, end]


@dataclass(frozen=True)
class _Named:
    key: str
    title: str
    scale: Scale


_BEYOND = 0.09
_LETTER = 0.065  # of the distance between two axes
_NUDGES = 7


def _is_unborn(trial: TrialResult) -> bool:
    return trial.metric is None and trial.state in ("pending", "running")


def _nudge(index: int) -> float:
    """Draw lines of equal options beside each other."""
    return (index * 3 % _NUDGES - _NUDGES // 2) * 0.006


def _draw(
    axes: Axes, drawing: _Drawing, trial: TrialResult, *, nudge: float, is_best: bool
) -> None:
    places = drawing.places(trial, nudge)
    color = drawing.colors.of(trial.metric or 0.0) if not failed(trial) else RED
    alpha, width = (1.0, 3.2) if is_best else (faded(len(drawing.trials)), 1.3)
    axes.plot(places, color=color, linestyle=LINES[trial.state], alpha=alpha, linewidth=width)
    if failed(trial):
        axes.plot([len(places) - 1], places[-1:], "x", color=RED, markersize=7, clip_on=False)
    if is_best:
        words = f"the best:\n{trial.id}"
        axes.annotate(
            words,
            (len(places) - 1, places[-1]),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            fontweight="bold",
            annotation_clip=False,
            zorder=6,
        )


def _dress(axes: Axes, drawing: _Drawing, title: str) -> None:
    last = len(drawing.scales) - 1
    for x, named in enumerate(drawing.scales):
        axes.plot([x, x], [0, 1], color="black", linewidth=0.8, zorder=3)
        ticks = list(named.scale.ticks)
        if named.key in drawing.is_partial:
            ticks.append(Tick(-_BEYOND, "not set"))
        if x == last and drawing.any_failed:
            ticks.append(Tick(drawing.failed_at, "failed"))
        for tick in ticks:
            _write(axes, x, tick)
    axes.set_xticks(range(last + 1), [named.title for named in drawing.scales], fontsize=10)
    axes.tick_params(axis="x", length=0)
    axes.set_yticks([])
    longest = max((len(trial.id) for trial in drawing.trials), default=0)
    room = 0.2 + _LETTER * max(longest, len("the best:"))
    axes.set(title=title, xlim=(-0.45, last + room), ylim=(-0.14, 1.14))
    for side in axes.spines.values():
        side.set_visible(False)


def _write(axes: Axes, x: int, tick: Tick) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
    axes.plot([x - 0.012, x + 0.012], [tick.place] * 2, color="black", linewidth=0.8, zorder=4)
    axes.text(
        x - 0.03, tick.place, tick.text, ha="right", va="center", fontsize=8, bbox=box, zorder=5
    )
