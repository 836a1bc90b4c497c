"""Which knobs had to do with which trials are good, and when that cannot be said."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from ftray.tune.report.importance import LEAST_TRIALS, Importance, importance
from ftray.tune.results import SearchResult

Searched = Callable[..., SearchResult]


def judged(result: SearchResult) -> Importance:
    return importance(result.search.space, result.trials, result.mode)


def test_the_knob_that_decides_comes_first_and_stands_out(searched: Searched):
    found = judged(searched(40))
    assert found.knobs[0].key == "train.learning_rate"
    assert found.knobs[0].share > 0.5
    assert found.knobs[0].stands_out
    assert sum(knob.share for knob in found.knobs) == pytest.approx(1.0)
    assert {knob.key for knob in found.knobs} == set(searched(1).search.space)


def test_knobs_without_effect_are_said_to_be_chance(searched: Searched):
    found = {knob.key: knob for knob in judged(searched(40)).knobs}
    assert not found["train.weight_decay"].stands_out
    assert not found["adapter.target"].stands_out


def test_a_metric_that_should_be_high_gives_the_same(searched: Searched):
    low = searched(32)
    negated = [
        trial if trial.metric is None else replace(trial, metric=-trial.metric)
        for trial in low.trials
    ]
    assert judged(replace(low, trials=negated, mode="max")) == judged(low)


def test_too_few_trials_are_said_to_be_too_few(searched: Searched):
    found = judged(searched(LEAST_TRIALS - 1))
    assert found.knobs == []
    assert "too few trials: 15 have a result or failed" in found.why_not


def test_trials_that_have_not_run_do_not_count(searched: Searched):
    result = searched(LEAST_TRIALS)
    waiting = [replace(trial, state="pending", metric=None) for trial in result.trials[:1]]
    assert judged(replace(result, trials=[*waiting, *result.trials[1:]])).knobs == []


def test_equal_results_say_nothing(searched: Searched):
    result = searched(20)
    alike = [replace(trial, state="finished", metric=1.0) for trial in result.trials]
    assert "nothing to compare" in judged(replace(result, trials=alike)).why_not


def test_a_value_that_a_scheduler_led_out_of_its_range_counts_as_its_end(searched: Searched):
    result = searched(20)
    outside = {**result.trials[0].values, "train.learning_rate": 0.5}
    first = replace(result.trials[0], values=outside)
    assert judged(replace(result, trials=[first, *result.trials[1:]])).knobs


def test_a_diverged_trial_counts_as_the_worst(searched: Searched):
    """Else the values that made it diverge would look harmless."""
    result = searched(24)
    failed = [replace(trial, state="failed", metric=None) for trial in result.trials[:12]]
    found = judged(replace(result, trials=[*failed, *result.trials[12:]]))
    assert found.trials == 24
