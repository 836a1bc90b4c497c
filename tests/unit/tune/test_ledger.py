"""The ledger of a search: what trials came to, and which of their states stay."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from ftray.tune.ledger import Ledger
from ftray.tune.rungs import Rules, state_folder, trial_folder

VALUES: dict[str, object] = {"adapter.rank": 8}
Open = Callable[..., Ledger]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    def opened(mode: str = "min") -> Ledger:
        return Ledger(Rules(str(tmp_path), 2, "eval_loss", mode, 3))

    return opened


def report(ledger: Ledger, trial: str, step: int, metric: float, folder: str) -> None:
    state = state_folder(folder, trial, step)
    Path(state).mkdir(parents=True, exist_ok=True)
    (Path(state) / "record.json").write_text("{}")
    line = {"step": step, "new_tokens": 10, "new_seconds": 0.5, "state": state}
    ledger.reported(trial, VALUES, line | {"eval_loss": metric})


def states(folder: Path, trial: str) -> set[int]:
    return {int(path.name.split("-")[1]) for path in (folder / "trials" / trial).glob("step-*")}


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 10)])
def test_the_newest_states_and_the_best_stay(opened: Open, tmp_path: Path, mode: str, best: int):
    ledger = opened(mode)
    ledger.began("a", VALUES)
    for step in range(2, 21, 2):
        metric = 3.0 + {2: -2.0, 10: 2.0}.get(step, 0.0)
        report(ledger, "a", step, metric, str(tmp_path))
    (result,) = ledger.results
    assert result.state_folder == state_folder(str(tmp_path), "a", best)
    assert (result.metric, result.steps, result.tokens, result.seconds) == (
        *(1.0 if mode == "min" else 5.0, 20),
        *(100, 5.0),
    )
    ledger.over("a", "stopped")
    ledger.close()
    assert states(tmp_path, "a") == {best, 20}


def test_of_a_trial_at_work_three_states_stay_beside_the_best(opened: Open, tmp_path: Path):
    ledger = opened()
    ledger.began("a", VALUES)
    for step in range(2, 21, 2):
        report(ledger, "a", step, float(step), str(tmp_path))
    ledger.close()
    assert states(tmp_path, "a") == {2, 16, 18, 20}


def test_steps_that_a_lost_host_makes_a_trial_repeat_replace_those_of_before(
    opened: Open, tmp_path: Path
):
    ledger = opened()
    ledger.began("a", VALUES)
    for step, metric in ((2, 3.0), (4, 2.0), (6, 1.0), (4, 2.5)):
        report(ledger, "a", step, metric, str(tmp_path))
    (result,) = ledger.results
    assert result.curve == [(2, 3.0), (4, 2.5)]
    assert (result.metric, result.steps) == (2.5, 4)


def test_what_is_no_number_is_no_point_of_the_curve(opened: Open, tmp_path: Path):
    ledger = opened()
    ledger.began("a", VALUES)
    report(ledger, "a", 2, math.nan, str(tmp_path))
    assert ledger.results[0].metric is None
    assert ledger.results[0].state_folder == state_folder(str(tmp_path), "a", 2)


def test_another_process_reads_what_was_written(opened: Open, tmp_path: Path):
    ledger = opened()
    ledger.began("a", VALUES)
    report(ledger, "a", 2, 1.0, str(tmp_path))
    ledger.began("b", VALUES)
    ledger.over("b", "failed", "out of memory")
    assert opened().results == ledger.results
    assert (opened().ended, opened().tokens) == (1, 10)


def test_trials_that_ray_tune_does_not_know_are_forgotten(opened: Open, tmp_path: Path):
    ledger = opened()
    for trial in ("a", "b"):
        ledger.began(trial, VALUES)
        report(ledger, trial, 2, 1.0, str(tmp_path))
    ledger.keep_only({"a"})
    assert [result.id for result in ledger.results] == ["a"]
    assert not Path(trial_folder(str(tmp_path), "b")).exists()


def test_trials_that_train_when_the_budget_is_spent_are_stopped(opened: Open, tmp_path: Path):
    ledger = opened()
    for trial in ("a", "b"):
        ledger.began(trial, VALUES)
        report(ledger, trial, 2, 1.0, str(tmp_path))
    ledger.over("a", "finished")
    ledger.stop_rest()
    assert [result.state for result in ledger.results] == ["finished", "stopped"]


def test_a_record_is_json_that_others_can_read(opened: Open, tmp_path: Path):
    ledger = opened()
    ledger.began("a", VALUES)
    report(ledger, "a", 2, 1.0, str(tmp_path))
    tree = json.loads((Path(trial_folder(str(tmp_path), "a")) / "trial.json").read_text())
    assert tree["result"]["values"] == VALUES
    assert tree["result"]["curve"] == [[2, 1.0]]
