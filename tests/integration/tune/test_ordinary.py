"""Trials that cannot share a base: each is a run of its own, under the same search."""

from threading import Thread

import pytest

from ftray import registry, runs
from ftray.runs import Run
from tests.integration.tune.conftest import STEPS, Workplace, processes

pytestmark = pytest.mark.full


def test_full_fine_tunings_are_searched_and_a_killed_runner_is_done_without(
    workplace: Workplace, ray_cluster: None
) -> None:
    tree = {
        "name": "full",
        "num_samples": 1,
        "every_steps": 2,
        "space": {"train.learning_rate": {"grid": [1e-6, 1e-4, 1e30]}},
        "scheduler": {"kind": "none"},
        "hosts": {"count": 2},
        "publish": {"best": 1, "name": "whole"},
    }
    disturber = Thread(target=kill_a_runner, args=(workplace,))
    disturber.start()
    found = workplace.search(tree, "adapter={method: full}", "scaling.cpus_per_worker=1")
    disturber.join()
    trials = {trial.values["train.learning_rate"]: trial for trial in found.result.trials}
    assert {rate: trial.state for rate, trial in trials.items()} == {
        1e-6: "finished",
        1e-4: "finished",
        1e30: "failed",
    }
    for trial in (trials[1e-6], trials[1e-4]):
        assert [step for step, _ in trial.curve] == [2, 4, STEPS]
        run = Run(workplace.root, f"full.{trial.id}")
        kept = {runs.checkpoint_folder(run, one.step, one.attempt) for one in runs.checkpoints(run)}
        assert trial.state_folder in kept
    best = found.report.rows[0]
    assert best.values == {"train.learning_rate": 1e-4}
    assert registry.resolve(workplace.root, "whole").kind == "full"
    assert best.held_out is not None


def kill_a_runner(workplace: Workplace) -> None:
    workplace.wait_for("full", lambda trials: any(trial.curve for trial in trials))
    processes("Runner")[0].kill()
