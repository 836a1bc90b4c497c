"""Which step is the best, when to stop early, and that a restart remembers both."""

import pytest

from ftray.train.evaluation import Found, Standing


def test_the_best_step_is_the_one_with_the_lowest_loss_so_far() -> None:
    standing = Standing()
    is_best = [standing.take(loss) for loss in (2.0, 1.5, 1.5, 1.7, 1.4)]
    assert is_best == [True, True, False, False, True]
    assert standing.best_eval_loss == 1.4


def test_a_run_stalls_after_so_many_evaluations_without_gain() -> None:
    standing = Standing()
    for loss in (2.0, 1.0, 1.1):
        standing.take(loss)
        assert not standing.is_stalled(2)
    standing.take(1.0)  # as good is no gain
    assert standing.is_stalled(2)
    assert not standing.is_stalled(None)
    standing.take(0.9)
    assert not standing.is_stalled(2)


def test_a_restart_stands_where_the_checkpoint_stood() -> None:
    before = Standing()
    for loss in (2.0, 1.0, 1.1):
        before.take(loss)
    again = Standing.of({"loss": 0.7, **before.numbers()})
    assert again == before
    assert not again.take(1.05)
    assert again.is_stalled(2)


def test_before_the_first_evaluation_there_is_nothing_to_remember() -> None:
    assert Standing().numbers() == {}
    assert Standing.of({"loss": 0.7}) == Standing()
    assert Standing.of({}).take(1e9)


def test_an_evaluation_reports_perplexity_and_samples_only_if_there_are_some() -> None:
    line = Found(2.0, "prompt: a\nanswer: b").line()
    assert line == {
        "eval_loss": 2.0,
        "perplexity": pytest.approx(7.389056),
        "samples": "prompt: a\nanswer: b",
    }
    assert "samples" not in Found(2.0, "").line()
