"""The floor of a host: trials come, report at their rungs, and go, and none waits for another."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from ftray.tune.floor import Floor
from ftray.tune.packed.state import read_state
from ftray.tune.packed.trainer import PackedTrainer
from ftray.tune.packed.trial import Trial
from ftray.tune.rungs import Failed, Joined, NoRoom, Report, Rules, Told

Floors = Callable[..., Floor]


@pytest.fixture
def floor_of(packed: Callable[..., PackedTrainer], tmp_path: Path) -> Floors:
    def make(metric: str = "eval_loss", slots: int = 8) -> Floor:
        return Floor(packed(slots=slots), Rules(str(tmp_path), 2, metric, "min", 3))

    return make


def asked(floor: Floor, trial: str) -> "Future[Told]":
    waiter: Future[Told] = Future()
    floor.expect(trial, waiter)
    return waiter


def reported(floor: Floor, trial: str) -> Report:
    """Turn until the trial's next report is there."""
    waiter = asked(floor, trial)
    for _ in range(20):
        if waiter.done():
            break
        floor.turn()
    told = waiter.result(timeout=0)
    assert isinstance(told, Report)
    return told


def test_a_trial_trains_on_behind_a_report_that_was_heard_and_no_further(
    floor_of: Floors, trial_of: Callable[..., Trial]
):
    floor = floor_of()
    joined = floor.attach(trial_of("a", {}), None)
    assert joined == Joined(parameters=floor._trainer.parameters("a"))
    first = reported(floor, "a")
    assert (first.steps, first.total_steps, first.is_last) == (2, 12, False)
    assert set(first.metrics) == {"loss", "eval_loss", "perplexity"}
    while floor.is_busy:
        floor.turn()
    assert floor.figures().steps == 4  # it waits with its second report
    assert reported(floor, "a").steps == 4
    assert floor.is_busy


def test_a_late_trial_joins_those_that_train_and_is_not_waited_for(
    floor_of: Floors, trial_of: Callable[..., Trial]
):
    floor = floor_of("loss")
    floor.attach(trial_of("early", {}), None)
    floor.turn()
    floor.attach(trial_of("late", {"adapter.rank": 16}), None)
    late = asked(floor, "late")
    assert reported(floor, "early").steps == 2
    assert not late.done()
    while not late.done():
        floor.turn()
    assert late.result(timeout=0).steps == 2
    assert floor.figures().lone_step is not None


def test_two_early_steps_are_taken_alone_to_see_what_company_saves(
    floor_of: Floors, trial_of: Callable[..., Trial]
):
    floor = floor_of("loss")
    for name in ("a", "b", "c"):
        floor.attach(trial_of(name, {}), None)
    floor.turn()
    assert floor.figures().lone_step is None
    floor.turn()
    assert floor.figures().lone_step is not None
    assert [seat.done for seat in floor._seats.values()] == [2, 1, 1]
    first = [asked(floor, name) for name in ("a", "b", "c")]
    for _ in range(4):
        floor.turn()
    assert [seat.done for seat in floor._seats.values()] == [4, 4, 4]
    assert all(waiter.done() for waiter in first)


def test_a_report_says_where_the_trial_is_saved_and_another_goes_on_from_there(
    floor_of: Floors, trial_of: Callable[..., Trial]
):
    floor = floor_of("loss")
    floor.attach(trial_of("donor", {}), None)
    state = reported(floor, "donor").state
    floor.attach(trial_of("copy", {"train.learning_rate": 1e-4}), state)
    copied = reported(floor, "copy")
    assert copied.steps == 4
    donor, copy = read_state(state), read_state(copied.state)
    assert (donor.step, copy.step, copy.trial) == (2, 4, "copy")
    assert copy.config.train.learning_rate == 1e-4


def test_a_copy_of_another_rank_is_refused(floor_of: Floors, trial_of: Callable[..., Trial]):
    floor = floor_of("loss")
    floor.attach(trial_of("donor", {}), None)
    state = reported(floor, "donor").state
    answer = floor.attach(trial_of("copy", {"adapter.rank": 16}), state)
    assert isinstance(answer, Failed)
    assert "has another adapter.rank" in answer.message


def test_a_full_host_has_no_room_until_a_trial_leaves(
    floor_of: Floors, trial_of: Callable[..., Trial]
):
    floor = floor_of("loss", slots=1)
    floor.attach(trial_of("a", {}), None)
    assert floor.attach(trial_of("b", {}), None) == NoRoom()
    waiter = asked(floor, "a")
    floor.leave("a")
    assert waiter.result(timeout=0) == Failed("the trial was stopped")
    assert isinstance(floor.attach(trial_of("b", {}), None), Joined)
    floor.leave("never here")


def test_a_trial_that_fails_tells_so_once_it_is_asked_and_the_others_go_on(
    floor_of: Floors, trial_of: Callable[..., Trial]
):
    floor = floor_of()
    for name in ("broken", "sound"):
        floor.attach(trial_of(name, {}), None)
    with torch.no_grad():
        floor._trainer._slots["broken"].adapter.weights[0, 5] = torch.nan
    assert reported(floor, "sound").steps == 2
    told = asked(floor, "broken").result(timeout=0)
    assert isinstance(told, Failed)
    assert "the loss became nan at step 1" in told.message
    assert isinstance(floor.attach(trial_of("next", {}), None), Joined)


def test_a_trial_whose_steps_are_all_taken_reports_again_where_it_was_saved(
    floor_of: Floors, trial_of: Callable[..., Trial]
):
    floor, trial = floor_of(), trial_of("a", {"train.max_steps": 2})
    floor.attach(trial, None)
    last = reported(floor, "a")
    assert last.is_last
    floor.attach(trial, last.state)  # as after a driver that died before it heard
    again = reported(floor, "a")
    assert (again.steps, again.tokens) == (2, 0)
    assert again.metrics["eval_loss"] == pytest.approx(last.metrics["eval_loss"], rel=1e-6)


def test_the_clock_counts_a_lone_trials_steps_and_no_pauses(
    floor_of: Floors, trial_of: Callable[..., Trial]
):
    floor = floor_of("loss")
    floor.attach(trial_of("a", {}), None)
    reported(floor, "a")
    floor.paused()
    before = floor.figures()
    assert before.lone_step is not None
    assert before.stepping > 0
    assert before.saving > 0
    assert before.measuring == 0
    assert floor.figures() == before
