"""What the best trials of a search come to, once measured on what no trial has seen."""

import math
from dataclasses import dataclass, field

from ftray.config.base import override
from ftray.config.run import RunConfig
from ftray.config.search import SearchConfig
from ftray.tune.results import SearchResult, TrialResult


@dataclass(frozen=True)
class Winner:
    """One of the best trials; `held_out` and `ref` are None where it was not measured, published.

    `metric` is the best that the search saw of it, `step` that of the weights that were measured.
    """

    trial: str
    metric: float
    step: int
    held_out: float | None
    ref: str | None


@dataclass(frozen=True)
class Winners:
    """The best trials in the search's order: the hold-out tells of them, and chooses none.

    A choice by the hold-out would make its number as rosy as the search's own.
    """

    winners: list[Winner]
    holdout: str  # what it is, in words; "" where there is none
    held_out_metric: str = "eval_loss"
    alias: str | None = None  # the `name@alias` that points at the best one now
    notes: list[str] = field(default_factory=list)


def searched(run: RunConfig, search: SearchConfig) -> RunConfig:
    """Return the run that trials vary: without the rows that the search's end is measured on.

    They are cut from eval; from train where the search says so, or where there is no eval.
    """
    wanted = search.holdout
    if wanted is None or wanted.path is not None or run.data.holdout is not None:
        return run
    has_eval = run.data.eval is not None or run.data.eval_fraction is not None
    part = {"of": wanted.of if has_eval else "train", "share": wanted.share}
    return override(run, {"data.holdout": part})


def ranked(result: SearchResult) -> list[TrialResult]:
    """Return the trials that a search compares, the best first; failed ones are not among them."""
    sign = 1.0 if result.mode == "min" else -1.0
    known = [trial for trial in result.trials if trial.state != "failed" and _has_metric(trial)]
    return sorted(known, key=lambda trial: sign * (trial.metric or 0.0))


def _has_metric(trial: TrialResult) -> bool:
    return trial.metric is not None and math.isfinite(trial.metric)
