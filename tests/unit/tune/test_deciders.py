"""Ray Tune's searchers and schedulers, built as a space file asks for them."""

from typing import Any

import optuna
import pytest
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
)

from ftray.config.search import SearchConfig
from ftray.config.space import drawn
from ftray.tune.deciders import Span, param_space, scheduler, searcher, trial_count

SPAN = Span(longest=100, every=8)
SPACE: dict[str, Any] = {
    "adapter.rank": {"choice": [4, 8]},
    "train.learning_rate": {"loguniform": [1e-5, 1e-3]},
    "adapter.rslora": {"choice": [True, False], "when": {"adapter.rank": 8}},
    "train.warmup_steps": {"int": [0, 3]},
}


def search_of(**changes: Any) -> SearchConfig:
    return SearchConfig.model_validate({"space": SPACE, **changes})


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("none", FIFOScheduler),
        ("asha", AsyncHyperBandScheduler),
        ("hyperband", HyperBandScheduler),
        ("pbt", PopulationBasedTraining),
        ("median", MedianStoppingRule),
    ],
)
def test_each_scheduler_is_ray_tunes_own(kind: str, expected: type):
    assert type(scheduler(search_of(scheduler={"kind": kind}), SPAN)) is expected


def test_the_longest_trial_has_its_last_report_counted():
    assert SPAN.reports == 13
    assert Span(96, 8).reports == 12


def test_asha_stops_nothing_before_the_grace_and_nothing_at_the_end():
    built = scheduler(search_of(scheduler={"kind": "asha", "reduction_factor": 4}), SPAN)
    assert (built._max_t, built._reduction_factor, built._stop_last_trials) == (100, 4, False)
    assert [rung for rung, _ in built._brackets[0]._rungs] == [32, 8]
    late = scheduler(search_of(scheduler={"kind": "asha", "grace_steps": 500}), SPAN)
    assert late._max_t == 100


def test_population_based_training_explores_the_rate_alone():
    built = scheduler(search_of(scheduler={"kind": "pbt", "every_steps": 16}), SPAN)
    assert set(built._hyperparam_mutations) == {"train.learning_rate"}
    assert built._perturbation_interval == 16


def test_values_lie_where_the_space_says():
    space = param_space(search_of())
    assert set(space) == set(SPACE)
    drawn_of = {key: draw.sample(size=200) for key, draw in space.items()}
    assert set(drawn_of["adapter.rank"]) == {4, 8}
    assert set(drawn_of["train.warmup_steps"]) == {0, 1, 2, 3}  # both ends included
    rates = drawn_of["train.learning_rate"]
    assert 1e-5 <= min(rates) < 3e-5
    assert 3e-4 < max(rates) <= 1e-3


def test_optuna_is_asked_only_for_keys_that_count():
    built = searcher(search_of(searcher={"kind": "optuna", "seed": 1, "startup_trials": 20}), 4)
    built.set_search_properties("eval_loss", "min", {})
    asked = [built.suggest(f"trial-{number}") for number in range(20)]
    for labels in asked:
        assert ("adapter.rslora" in labels) == (labels["adapter.rank"] == 8)
        assert drawn(search_of().space, labels) == labels
    assert {labels["adapter.rank"] for labels in asked} == {4, 8}


def test_optuna_takes_several_objectives():
    also = {"trained_parameters": "min", "seconds": "min"}
    built = searcher(search_of(searcher={"kind": "optuna"}, also=also), 4)
    assert built.metric == ["eval_loss", "trained_parameters", "seconds"]
    assert built._ot_study.directions == [optuna.study.StudyDirection.MINIMIZE] * 3


def test_a_grid_gives_all_its_points_each_time_and_the_budget_caps_the_times():
    grids = {"adapter.rank": {"grid": [4, 8]}, "adapter.alpha": {"grid": [8, 16, 32]}}
    assert trial_count(search_of(space=grids, num_samples=2)) == 12
    assert trial_count(search_of(num_samples=30, budget={"trials": 5})) == 5
    assert trial_count(search_of(num_samples=3, budget={"trials": 5})) == 3
