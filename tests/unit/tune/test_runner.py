"""What an ordinary trial reports: the rungs of its run, as its files tell of them."""

import json
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from ftray import runs, storage
from ftray.config.run import RunConfig
from ftray.runs import CheckpointRecord, Run
from ftray.tune.runner import next_report


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    root = str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    tree = {"name": "ranks.t1", "data": {"train": "a.jsonl"}, "train": {"max_steps": 5}}
    run = runs.open_run(root, RunConfig.model_validate(tree))
    runs.change_status(run, lambda status: replace(status, total_steps=5))
    return run


def trained(run: Run, steps: int, saved: dict[int, int]) -> None:
    """Let a run have taken so many steps, with checkpoints by step and attempt."""
    lines = []
    for step in range(1, steps + 1):
        lines.append({"step": step, "loss": 1.0 * step, "tokens": 10, "step_seconds": 0.5})
        if step % 2 == 0 or step == 5:
            lines.append({"step": step, "eval_loss": 0.1 * step, "perplexity": 1.1})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    storage.write(storage.join(run.folder, "metrics.jsonl"), text.encode())
    for step, attempt in saved.items():
        record = CheckpointRecord(step=step, attempt=attempt, world_size=1, threads=1)
        runs.write_checkpoint_record(run, record)


def test_a_rung_is_reported_once_it_is_saved(run: Run):
    assert next_report(run, 2, 0) is None
    trained(run, 3, {})
    assert next_report(run, 2, 0) is None
    trained(run, 3, {2: 1})
    found = next_report(run, 2, 0)
    assert found is not None
    assert (found.steps, found.total_steps, found.tokens, found.seconds) == (2, 5, 20, 1.0)
    assert found.metrics == {"loss": 1.5, "eval_loss": 0.2, "perplexity": 1.1}
    assert found.state == runs.checkpoint_folder(run, 2, 1)
    assert not found.is_last
    assert next_report(run, 2, 2) is None


def test_rungs_that_have_passed_in_between_are_told_one_by_one(run: Run):
    trained(run, 5, {2: 1, 4: 1, 5: 2})
    told = []
    while (found := next_report(run, 2, told[-1].steps if told else 0)) is not None:
        told.append(found)
    assert [(one.steps, one.tokens) for one in told] == [(2, 20), (4, 20), (5, 10)]
    assert [one.is_last for one in told] == [False, False, True]
    assert told[-1].metrics["loss"] == 5.0


def test_what_was_saved_off_a_rung_is_no_report(run: Run):
    trained(run, 3, {3: 1})
    assert next_report(run, 2, 0) is None


def test_of_two_attempts_at_a_step_the_later_one_counts(run: Run):
    trained(run, 2, {2: 1})
    trained(run, 2, {2: 3})
    found = next_report(run, 2, 0)
    assert found is not None
    assert found.state == runs.checkpoint_folder(run, 2, 3)
