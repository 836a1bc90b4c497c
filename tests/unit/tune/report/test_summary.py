"""A search in figures: order, costs, both numbers, and what is worth knowing beforehand."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from ftray.tune.report.summary import Report, summarize
from ftray.tune.results import SearchResult, TrialResult
from ftray.tune.winners import Winner, Winners

Searched = Callable[..., SearchResult]


def won(result: SearchResult, held_out: dict[int, float]) -> Winners:
    """Measure trials by their place in the search."""
    rows = summarize(result, None).rows
    return Winners(
        [
            Winner(rows[place - 1].trial, rows[place - 1].metric or 0.0, 81, loss, f"bot@{place}")
            for place, loss in held_out.items()
        ],
        "50% of the eval rows, 123 rows",
        alias="bot@champion",
    )


def test_trials_are_ranked_and_those_without_a_result_come_last(searched: Searched):
    report = summarize(searched(32), None)
    placed = [row for row in report.rows if row.place is not None]
    assert [row.place for row in placed] == list(range(1, len(placed) + 1))
    assert placed == sorted(placed, key=lambda row: row.metric or 0.0)
    assert report.rows[: len(placed)] == placed
    assert {row.state for row in report.rows[len(placed) :]} == {"failed"}
    assert len(report.rows) == 32


def test_more_is_better_where_the_search_says_so(searched: Searched):
    result = replace(searched(8), mode="max")
    metrics = [row.metric or 0.0 for row in summarize(result, None).rows if row.place]
    assert metrics == sorted(metrics, reverse=True)


def test_a_diverged_trial_is_not_placed_by_what_it_was_before(searched: Searched):
    result = searched(4)
    diverged = replace(result.trials[0], state="failed", metric=0.1, error="the loss is no number")
    rows = summarize(replace(result, trials=[diverged, *result.trials[1:]]), None).rows
    assert (rows[-1].trial, rows[-1].place, rows[-1].metric) == (diverged.id, None, None)


@pytest.mark.parametrize("metric", [float("nan"), float("inf")])
def test_a_result_that_is_no_number_is_none(searched: Searched, metric: float):
    result = searched(4)
    trials = [replace(result.trials[0], metric=metric), *result.trials[1:]]
    assert summarize(replace(result, trials=trials), None).rows[-1].metric is None


def test_hours_count_the_gpus_of_a_host(searched: Searched):
    costs = summarize(replace(searched(2), gpus_per_host=2.0), None).costs
    assert costs.unit == "GPU"
    assert costs.used_hours == pytest.approx(2 * 580 / 3600)
    assert costs.alone_hours == pytest.approx(2 * 2900 / 3600)
    assert costs.saved_hours == pytest.approx(2 * 2320 / 3600)


def test_without_gpus_hours_are_those_of_hosts(searched: Searched):
    costs = summarize(replace(searched(2), gpus_per_host=0.0), None).costs
    assert (costs.unit, costs.used_hours) == ("host", pytest.approx(580 / 3600))


def test_what_was_not_measured_is_not_claimed(searched: Searched):
    report = summarize(replace(searched(2), saved_against_solo_seconds=None), None)
    assert (report.costs.alone_hours, report.costs.saved_hours, report.saved_hours) == (None,) * 3


def test_both_numbers_of_the_best_stand_beside_each_other(searched: Searched):
    result = searched(8)
    report = summarize(result, won(result, {1: 1.3, 2: 1.4}))
    assert report.best is not None
    assert (report.best.held_out, report.best.adapter) == (1.3, "bot@1")
    assert report.rows[2].held_out is None
    assert (report.holdout, report.alias) == ("50% of the eval rows, 123 rows", "bot@champion")
    assert report.notes == []


def test_another_best_on_the_holdout_is_told(searched: Searched):
    result = searched(8)
    report = summarize(result, won(result, {1: 1.3, 2: 1.25, 3: 1.4}))
    assert f"trial {report.rows[1].trial} is better than {report.rows[0].trial}" in report.notes[0]


def test_a_search_that_has_not_ended_says_so(searched: Searched):
    result = searched(4)
    waiting = [replace(trial, state="pending", metric=None) for trial in result.trials[:2]]
    report = summarize(replace(result, trials=[*waiting, *result.trials[2:]]), None)
    assert report.notes == ["the search has not ended: 2 trials are left"]


def test_a_search_that_its_budget_has_ended_says_so(searched: Searched):
    report = summarize(replace(searched(4), ended_by="budget.seconds=60"), None)
    assert report.notes == ["the search has ended by its budget: budget.seconds=60"]


def test_a_search_without_trials_is_summarized_too(searched: Searched):
    report: Report = summarize(searched(0), None)
    assert (report.rows, report.best, report.states) == ([], None, {})


def test_a_trial_keeps_its_error_and_values(searched: Searched):
    trial: TrialResult = searched(1).trials[0]
    failed = replace(trial, state="failed", error="out of memory")
    row = summarize(replace(searched(1), trials=[failed]), None).rows[0]
    assert (row.error, row.values) == ("out of memory", trial.values)
