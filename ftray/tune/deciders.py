"""Ray Tune's own searchers and schedulers, as a space file asks for them."""

from dataclasses import dataclass
from typing import Any

import optuna
from optuna.samplers import TPESampler
from optuna.trial import Trial
from ray import tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import SearchAlgorithm, Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from ftray.config.search import (
    AshaConfig,
    HyperBandConfig,
    MedianConfig,
    OptunaConfig,
    PbtConfig,
    SearchConfig,
)
from ftray.config.space import DrawConfig, Space, drawn, is_met

STEP = "step"  # what schedulers count in: the trial's optimizer steps
REPORT = "training_iteration"


@dataclass(frozen=True)
class Span:
    """How long trials are: the steps of the longest one, and those between two reports."""

    longest: int
    every: int

    @property
    def reports(self) -> int:
        """Reports of the longest trial."""
        return -(-self.longest // self.every)


def searcher(search: SearchConfig, at_once: int) -> Searcher | SearchAlgorithm:
    """Build what draws the trials, so many of them at once."""
    match search.searcher:
        case OptunaConfig() as chosen:
            return _optuna(search, chosen)
        case chosen:
            return BasicVariantGenerator(max_concurrent=at_once, random_state=chosen.seed)


def param_space(search: SearchConfig) -> dict[str, Any]:
    """Return Ray's distributions by run key; Optuna has its own."""
    if isinstance(search.searcher, OptunaConfig):
        return {}
    return {key: _distribution(draw) for key, draw in search.space.items()}


def scheduler(search: SearchConfig, span: Span) -> TrialScheduler:
    """Build what decides, at each report, which trials go on."""
    metric, mode = search.metric, search.mode
    match search.scheduler:
        case AshaConfig() as asha:
            return AsyncHyperBandScheduler(
                time_attr=STEP,
                max_t=span.longest,
                grace_period=min(asha.grace_steps or span.every, span.longest),
                reduction_factor=asha.reduction_factor,
                brackets=asha.brackets,
                stop_last_trials=False,
                metric=metric,
                mode=mode,
            )
        case HyperBandConfig() as band:
            return HyperBandScheduler(
                time_attr=REPORT,
                max_t=span.reports,
                reduction_factor=band.reduction_factor,
                metric=metric,
                mode=mode,
            )
        case PbtConfig() as pbt:
            up, down = pbt.factors
            rates = search.space["train.learning_rate"]
            return PopulationBasedTraining(
                time_attr=STEP,
                perturbation_interval=pbt.every_steps or span.every,
                hyperparam_mutations={"train.learning_rate": rates.labels or _distribution(rates)},
                quantile_fraction=pbt.quantile,
                resample_probability=0.0,
                perturbation_factors=(up, down),
                log_config=False,
                metric=metric,
                mode=mode,
            )
        case MedianConfig() as median:
            return MedianStoppingRule(
                time_attr=STEP,
                grace_period=median.grace_steps or 2 * span.every,
                min_samples_required=median.min_trials,
                metric=metric,
                mode=mode,
            )
        case _:
            return FIFOScheduler()


def samples(search: SearchConfig) -> int:
    """Return how often the space is drawn from; a grid gives all its points each time."""
    return min(search.num_samples, search.budget.trials or search.num_samples)


def trial_count(search: SearchConfig) -> int:
    """Return how many trials there are in all."""
    count = samples(search)
    for draw in search.space.values():
        count *= len(draw.grid or [0])
    return count


def _distribution(draw: DrawConfig) -> Any:
    match draw.kind:
        case "grid":
            return tune.grid_search(draw.labels)
        case "choice":
            return tune.choice(draw.labels)
        case "int":
            low, high = draw.bounds
            return tune.randint(int(low), int(high) + 1)
        case "uniform":
            return tune.uniform(*draw.bounds)
        case _:
            return tune.loguniform(*draw.bounds)


def _optuna(search: SearchConfig, chosen: OptunaConfig) -> Searcher:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names: list[str] = [search.metric, *search.also]
    ways: list[str] = [search.mode, *search.also.values()]
    return OptunaSearch(
        space=_Asked(search.space),
        metric=names if search.also else names[0],
        mode=ways if search.also else ways[0],
        sampler=TPESampler(seed=chosen.seed, n_startup_trials=chosen.startup_trials),
    )


@dataclass(frozen=True)
class _Asked:
    """The space as Optuna takes it: it asks key by key, and only for those that count."""

    space: Space

    def __call__(self, trial: Trial) -> None:
        labels: dict[str, Any] = {}
        for key, draw in self.space.items():
            if is_met(draw, drawn(self.space, labels)):
                labels[key] = _suggested(trial, key, draw)


def _suggested(trial: Trial, key: str, draw: DrawConfig) -> Any:
    low, high = draw.bounds  # of options nothing that counts
    match draw.kind:
        case "choice" | "grid":
            return trial.suggest_categorical(key, draw.labels)
        case "int":
            return trial.suggest_int(key, int(low), int(high))
        case kind:
            return trial.suggest_float(key, low, high, log=kind == "loguniform")
