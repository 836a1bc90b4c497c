"""How much each knob had to do with which trials are good: PED-ANOVA, with its own doubt."""

import math
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState, create_trial

from ftray.config.space import DrawConfig, Space
from ftray.tune.results import TrialResult

# A quarter of them are the 4 best: on made-up searches with one true knob among four, it then came
# first in 92% of cases, with 10 trials in 87%, with 24 in all.
LEAST_TRIALS = 16
METHOD = (
    "PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255) for what sets the best quarter of the"
    " trials apart; by chance: the share of 100 shuffles of the results that give as much"
    " (Altmann et al. 2010)"
)


@dataclass(frozen=True)
class Knob:
    """One key: its share of all importance, and how often chance gives it as much; 0 to 1."""

    key: str
    share: float
    by_chance: float

    @property
    def stands_out(self) -> bool:
        """Whether it is more than what a knob without any effect often gets."""
        return self.by_chance <= _SELDOM


@dataclass(frozen=True)
class Importance:
    """Every knob, the most important first; none where `why_not` says why."""

    knobs: list[Knob]
    trials: int
    why_not: str
    method: str = METHOD


def importance(space: Space, trials: Sequence[TrialResult], mode: str) -> Importance:
    """Judge every knob by which trials are among the best quarter.

    Trials that a scheduler has stopped count: it stopped them because they were not among the
    best. Failed ones count as the worst, for it is their values that made them fail.
    """
    judged = [trial for trial in trials if trial.state == "failed" or _has_result(trial)]
    draws = {key: draw for key, draw in space.items() if _varies(draw)}
    if len(judged) < LEAST_TRIALS:
        few = f"too few trials: {len(judged)} have a result or failed, and it takes {LEAST_TRIALS}"
        return Importance([], len(judged), few)
    losses = _losses(judged, mode)
    if len(set(losses)) == 1 or not draws:
        return Importance([], len(judged), "there is nothing to compare: all trials are alike")
    study = _study(draws, judged)
    found = _found(study, draws, losses)
    total = sum(found.values()) or 1.0
    chance = _by_chance(study, found, losses)
    knobs = [Knob(key, value / total, chance[key]) for key, value in found.items()]
    return Importance(sorted(knobs, key=lambda knob: -knob.share), len(judged), "")


_SELDOM = 0.05
_BEST = 0.25
_SHUFFLES = 100


def _varies(draw: DrawConfig) -> bool:
    return draw.options is None or len(draw.options) > 1


def _losses(trials: Sequence[TrialResult], mode: str) -> list[float]:
    """Less is better; what failed has the worst of all."""
    sign = 1.0 if mode == "min" else -1.0
    losses = [
        sign * trial.metric if trial.metric is not None and _has_result(trial) else math.inf
        for trial in trials
    ]
    worst = max((loss for loss in losses if math.isfinite(loss)), default=0.0) + 1.0
    return [min(loss, worst) for loss in losses]


def _has_result(trial: TrialResult) -> bool:
    is_number = trial.metric is not None and math.isfinite(trial.metric)
    return is_number and trial.state != "failed"


def _study(draws: Mapping[str, DrawConfig], trials: Sequence[TrialResult]) -> optuna.Study:
    """Put the trials' values into a study; their losses are given when it is asked."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it tells of each study
    distributions = {key: _distribution(draw) for key, draw in draws.items()}
    study = optuna.create_study()
    study.add_trials([_frozen(draws, distributions, trial) for trial in trials])
    return study


def _found(study: optuna.Study, keys: Iterable[str], losses: Sequence[float]) -> dict[str, float]:
    with warnings.catch_warnings():
        # that low losses are good; that a condition is met by one trial only
        warnings.filterwarnings("ignore", ".*low `target` values|Some regimes for parameter")
        measured = PedAnovaImportanceEvaluator(target_quantile=_BEST).evaluate(
            study, target=lambda trial: losses[trial.number]
        )
    return {key: float(measured.get(key, 0.0)) for key in keys}


def _by_chance(
    study: optuna.Study, found: Mapping[str, float], losses: Sequence[float]
) -> dict[str, float]:
    """Return how often losses that have nothing to do with the values give a knob as much."""
    shuffling = random.Random(0)
    as_much = dict.fromkeys(found, 0)
    for _ in range(_SHUFFLES):
        shuffled = shuffling.sample(losses, len(losses))
        for key, value in _found(study, found, shuffled).items():
            as_much[key] += value >= found[key]
    return {key: (count + 1) / (_SHUFFLES + 1) for key, count in as_much.items()}


def _frozen(
    draws: Mapping[str, DrawConfig],
    distributions: Mapping[str, BaseDistribution],
    trial: TrialResult,
) -> FrozenTrial:
    given = {key: draw for key, draw in draws.items() if key in trial.values}
    return create_trial(
        state=TrialState.COMPLETE,
        value=0.0,
        params={key: _parameter(draw, trial.values[key]) for key, draw in given.items()},
        distributions={key: distributions[key] for key in given},
    )


def _parameter(draw: DrawConfig, value: object) -> str | float | int | bool | None:
    """Population based training leads rates out of their range; they count as its end."""
    if draw.options is not None:
        return draw.labels[draw.options.index(value)]
    low, high = draw.bounds
    return min(max(cast(float, value), low), high)


def _distribution(draw: DrawConfig) -> BaseDistribution:
    low, high = draw.bounds
    match draw.kind:
        case "choice" | "grid":
            return CategoricalDistribution(draw.labels)
        case "int":
            return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=draw.kind == "loguniform")
