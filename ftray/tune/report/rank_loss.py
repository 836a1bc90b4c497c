"""Rank against result: what more rank brings, and where it stops to."""

from collections.abc import Sequence
from typing import cast

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ftray.tune.report.look import GREY, RED, Shades, failed, png, said, set_scale
from ftray.tune.results import SearchResult, TrialResult

RANK, RATE = "adapter.rank", "train.learning_rate"


def rank_loss(result: SearchResult) -> bytes | None:
    """Draw each trial's result over its rank, as a PNG; None where ranks were not searched."""
    trials = [t for t in result.trials if RANK in t.values and (t.metric is not None or failed(t))]
    placed = [trial for trial in trials if not failed(trial)]
    if not placed:
        return None
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    set_scale(axes, [_result(trial) for trial in placed])
    colors = _colors(placed)
    _draw_best(axes, placed, result.mode)
    for state in _MARKS:
        _draw_points(axes, [trial for trial in placed if trial.state == state], state, colors)
    _draw_failed(axes, [trial for trial in trials if trial.state == "failed"], result.mode)
    if colors is not None:
        colors.explain(figure, axes, "learning rate")
    ranks = sorted({_rank(trial) for trial in trials})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.minorticks_off()
    axes.set(title=f"{result.name}: rank against {result.metric}", xlabel="rank")
    axes.set_ylabel(said(result.metric, result.mode))
    axes.set_xlim(ranks[0] / 1.4, ranks[-1] * 1.4)
    axes.grid(alpha=0.3)
    figure.legend(handles=_legend(trials), loc="outside lower center", ncols=5, frameon=False)
    return png(figure)


def _rank(trial: TrialResult) -> int:
    return cast(int, trial.values[RANK])


def _result(trial: TrialResult) -> float:
    return cast(float, trial.metric)


def _colors(trials: Sequence[TrialResult]) -> Shades | None:
    rates = [cast(float, trial.values[RATE]) for trial in trials if RATE in trial.values]
    if len(rates) < len(trials) or len(set(rates)) < 2:
        return None
    return Shades(rates, dark="high")


def _draw_best(axes: Axes, trials: Sequence[TrialResult], mode: str) -> None:
    """Join the best result of each rank."""
    choose = min if mode == "min" else max
    ranks = sorted({_rank(trial) for trial in trials})
    best = [choose(_result(t) for t in trials if _rank(t) == rank) for rank in ranks]
    axes.plot(ranks, best, color=GREY, linewidth=1.2, zorder=1)


def _draw_points(
    axes: Axes, trials: Sequence[TrialResult], state: str, colors: Shades | None
) -> None:
    shade = [
        "black" if colors is None else colors.of(cast(float, trial.values[RATE]))
        for trial in trials
    ]
    axes.scatter(
        [_rank(trial) for trial in trials],
        [_result(trial) for trial in trials],
        s=42,
        marker=_MARKS[state],
        facecolors=shade if state == "finished" else "white",
        edgecolors=shade,
        linewidths=1.4,
        zorder=3,
    )


def _draw_failed(axes: Axes, trials: Sequence[TrialResult], mode: str) -> None:
    """Put failed trials beyond the worst result, side by side."""
    if not trials:
        return
    axes.margins(y=0.12)
    at = 0.97 if mode == "min" else 0.03
    seen: dict[int, int] = {}
    for trial in trials:
        beside = seen[_rank(trial)] = seen.get(_rank(trial), 0) + 1
        x = _rank(trial) * 1.05 ** (beside // 2 * (-1) ** beside)
        axes.plot([x], [at], "x", color=RED, markersize=7, transform=axes.get_xaxis_transform())


def _legend(trials: Sequence[TrialResult]) -> list[Line2D]:
    marks = {
        "finished": _mark("finished", "black", "finished"),
        "stopped": _mark("stopped", "white", "stopped early"),
        "running": _mark("running", "white", "not ended"),
        "failed": Line2D([], [], marker="x", color=RED, linestyle="", label="failed"),
    }
    states = {trial.state for trial in trials}
    best = Line2D([], [], color=GREY, label=f"best of each {RANK.rpartition('.')[2]}")
    return [*(mark for state, mark in marks.items() if state in states), best]


def _mark(state: str, face: str, words: str) -> Line2D:
    return Line2D(
        [], [], linestyle="", marker=_MARKS[state], color="black", markerfacecolor=face, label=words
    )


_MARKS = {"finished": "o", "stopped": "o", "running": "s"}
