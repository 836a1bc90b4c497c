"""The status of a run while its driver works."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from ftray import runs
from ftray.config.data import DataConfig
from ftray.config.run import RunConfig, TrainConfig
from ftray.runs import Run
from ftray.train import status
from ftray.train.status import status_kept

CONFIG = RunConfig(name="run", data=DataConfig(train="x.jsonl"), train=TrainConfig(epochs=1))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return runs.open_run(str(tmp_path), CONFIG)


def test_success_is_written_last(run: Run) -> None:
    with status_kept(run):
        assert runs.read_status(run).state == "running"
    assert runs.read_status(run).state == "succeeded"


@pytest.mark.parametrize(
    ("error", "state", "told"),
    [
        (KeyboardInterrupt(), "paused", None),
        (ValueError("too bad"), "failed", "too bad"),
        (SystemExit(0), "failed", "0"),
    ],
)
def test_what_ended_a_run_is_told(
    run: Run, error: BaseException, state: str, told: str | None
) -> None:
    with pytest.raises(type(error)), status_kept(run):
        raise error
    found = runs.read_status(run)
    assert (found.state, found.error) == (state, told)


def test_the_heart_beats_while_the_driver_is_busy_elsewhere(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "_BEAT_SECONDS", 0.01)
    with status_kept(run):
        begun = runs.read_status(run).heartbeat
        while runs.read_status(run).heartbeat == begun:
            threading.Event().wait(0.01)


def test_threads_of_the_driver_lose_none_of_each_others_updates(run: Run) -> None:
    def count() -> None:
        for _ in range(25):
            runs.change_status(run, lambda found: replace(found, step=found.step + 1))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    attempts = [runs.next_attempt(run) for _ in range(5)]
    for thread in threads:
        thread.join()
    found = runs.read_status(run)
    assert (found.step, found.attempts, attempts) == (100, 6, [2, 3, 4, 5, 6])
