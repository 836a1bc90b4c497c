"""Packed trials through the whole command: their losses, their copies, and the loss of a host."""

import math
from itertools import combinations
from threading import Thread

import pytest

from ftray import commands, registry, runs
from ftray.config.base import override, to_yaml
from tests.integration.tune.conftest import STEPS, Workplace, processes

pytestmark = pytest.mark.full


def test_trials_of_a_killed_host_go_on_from_their_last_rung(
    workplace: Workplace, ray_cluster: None
) -> None:
    tree = {
        "name": "killed",
        "num_samples": 1,
        "every_steps": 2,
        "space": {"train.learning_rate": {"grid": [1e-4, 1e-2]}},
        "scheduler": {"kind": "none"},
        "publish": {"best": 0},
    }
    disturber = Thread(target=kill_the_host, args=(workplace,))
    disturber.start()
    found = workplace.search(tree)
    disturber.join()
    for trial in found.result.trials:
        assert (trial.state, trial.error) == ("finished", "")
        assert [step for step, _ in trial.curve] == [2, 4, STEPS]


def kill_the_host(workplace: Workplace) -> None:
    workplace.wait_for("killed", lambda trials: any(trial.curve for trial in trials))
    (host,) = processes("Host")
    host.kill()


def test_a_packed_trial_has_the_losses_of_its_run_alone(
    workplace: Workplace, ray_cluster: None
) -> None:
    """Through the whole of both commands; every kind of trial: tests/unit/tune/packed."""
    tree = {
        "name": "curves",
        "metric": "loss",
        "every_steps": 1,
        "num_samples": 1,
        "space": {
            "adapter.rank": {"grid": [4, 16]},
            "train.learning_rate": {"grid": [1e-4, 2e-3]},
        },
        "scheduler": {"kind": "none"},
        "holdout": None,
        "publish": {"best": 0},
    }
    found = workplace.search(tree, "train.max_steps=12", "train.schedule=linear")
    assert len(found.result.trials) == 4
    for trial in found.result.trials:
        config = override(found.result.config, trial.values)
        path = workplace.folder / f"{trial.id}.yaml"
        path.write_text(to_yaml(config))
        run = commands.train(str(path), [f"name={trial.id}"]).run
        alone = [line["loss"] for line in runs.read_metrics(run) if "loss" in line]
        assert len(alone) == 12
        assert [loss for _, loss in trial.curve] == pytest.approx(alone, rel=1e-5)


def test_population_based_training_copies_slots_and_never_changes_a_rank(
    workplace: Workplace, ray_cluster: None
) -> None:
    tree = {
        "name": "population",
        "num_samples": 4,
        "every_steps": 2,
        "space": {
            "adapter.rank": {"choice": [8]},
            "train.learning_rate": {"loguniform": [1e-6, 1e-2]},
        },
        "searcher": {"kind": "random", "seed": 1},
        "scheduler": {"kind": "pbt", "quantile": 0.5},
    }
    found = workplace.search(tree, "train.max_steps=12", "train.schedule=constant")
    trials = found.result.trials
    assert [trial.state for trial in trials] == ["finished"] * 4
    rates = {trial.values["train.learning_rate"] for trial in trials}
    factors = [math.log(one / other, 1.25) for one, other in combinations(rates, 2)]
    copied = [factor for factor in factors if abs(factor - round(factor)) < 1e-6]
    assert copied, f"no trial has a donor's rate times 1.25 or 0.8, or such a copy's: {rates}"
    assert {trial.values["adapter.rank"] for trial in trials} == {8}
    record = registry.resolve(workplace.root, found.winners.winners[0].ref or "")
    assert record.rank == 8
