"""The driver of a search ends before its trials do; the same command goes on."""

import signal
import subprocess
import sys

import pytest

from ftray.searches import Search, read_status
from tests.integration.tune.conftest import STEPS, Workplace

pytestmark = pytest.mark.full

SEARCH = {
    "num_samples": 6,
    "every_steps": 2,
    "space": {
        "adapter.rank": {"choice": [4, 8]},
        "train.learning_rate": {"loguniform": [1e-4, 1e-2]},
    },
    "hosts": {"slots": 2},  # the first trials end before the last ones begin
    "scheduler": {"kind": "none"},
    "publish": {"best": 1},
}


@pytest.mark.parametrize(
    ("sign", "state", "searcher"),
    [
        (signal.SIGKILL, "lost", {"kind": "random"}),
        (signal.SIGKILL, "lost", {"kind": "optuna", "startup_trials": 2}),
        (signal.SIGINT, "paused", {"kind": "random"}),
    ],
    ids=["kill -9", "kill -9 with optuna", "ctrl-c"],
)
def test_the_same_command_goes_on_and_repeats_no_trial_that_has_ended(
    workplace: Workplace,
    sign: signal.Signals,
    state: str,
    searcher: dict[str, object],
    request: pytest.FixtureRequest,
) -> None:
    name = f"search-{sign.name.lower()}-{searcher['kind']}"
    space = workplace.space({**SEARCH, "name": name, "searcher": searcher})
    command = [sys.executable, "-m", "ftray", "tune", "run.yaml", space]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    first = subprocess.Popen(command, cwd=workplace.folder, **pipes)
    workplace.wait_for(name, lambda trials: any(trial.state == "finished" for trial in trials))
    first.send_signal(sign)
    shown = first.communicate(timeout=120)
    assert first.returncode == (-sign if sign == signal.SIGKILL else 130), shown
    search = Search(workplace.root, name)
    assert read_status(search).state == state
    before = workplace.trials(name)
    subprocess.run(command, cwd=workplace.folder, check=True, timeout=400)
    status, after = read_status(search), workplace.trials(name)
    assert (status.state, status.attempts, status.trials) == ("succeeded", 2, 6)
    assert [trial.state for trial in after.values()] == ["finished"] * 6
    for trial in after.values():
        assert [step for step, _ in trial.curve] == [2, 4, STEPS]
    for trial_id, trial in before.items():
        if trial.state == "finished":
            assert after[trial_id] == trial
        again = after[trial_id].curve[: len(trial.curve)]
        if state == "paused":
            assert again == trial.curve
        # after a kill, reports since the last saved state come again: steps in other company
        assert [step for step, _ in again] == [step for step, _ in trial.curve]
        metrics = [metric for _, metric in trial.curve]
        assert [metric for _, metric in again] == pytest.approx(metrics, rel=1e-5)
