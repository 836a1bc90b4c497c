"""Ctrl-C, or a kill, saves and pauses a run; the same command goes on with it. Two stop at once."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ftray import runs
from ftray.runs import Run

pytestmark = pytest.mark.full


COMMAND = [sys.executable, "-m", "ftray", "train", "run.yaml", "--cluster", "cluster.yaml"]


@pytest.fixture
def run(tmp_path: Path, small_model: Path) -> Run:
    """A run that has not begun, in the folder of its command."""
    pairs = [{"prompt": f"{n} and {n + 1}", "completion": str(2 * n + 1)} for n in range(48)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tmp_path / "run.yaml").write_text(f"""
name: paused
model: {{name: {small_model}}}
data: {{train: train.jsonl, format: prompt_completion, max_length: 128}}
train: {{max_steps: 60, global_batch_size: 4, micro_batch_size: 2}}
checkpoint: {{every_steps: 50}}
storage: root
""")
    (tmp_path / "cluster.yaml").write_text("num_cpus: 4\n")
    return Run(str(tmp_path / "root"), "paused")


def at_work(run: Run, folder: Path) -> subprocess.Popen[bytes]:
    """Start the command; return once it has done some steps."""
    first = subprocess.Popen(COMMAND, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not any(line["step"] >= 3 for line in runs.read_metrics(run)):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    return first


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "kill"])
def test_an_interrupted_run_is_paused_and_goes_on(
    run: Run, tmp_path: Path, sign: signal.Signals
) -> None:
    first = at_work(run, tmp_path)
    first.send_signal(sign)
    shown = first.communicate(timeout=120)
    assert first.returncode == 130, shown
    status = runs.read_status(run)
    assert (status.state, status.error) == ("paused", None)
    assert b"go on: ftray train run.yaml --cluster cluster.yaml" in shown[1]
    done = max(line["step"] for line in runs.read_metrics(run))
    assert runs.checkpoints(run)[0].step == done  # no step is lost
    subprocess.run([*COMMAND, "train.max_steps=60"], cwd=tmp_path, check=True, timeout=400)
    status = runs.read_status(run)
    assert (status.state, status.step, status.attempts) == ("succeeded", 60, 2)
    steps = [line["step"] for line in runs.read_metrics(run)]
    assert steps == list(range(1, 61))


def test_a_second_interrupt_stops_a_run_at_once_and_without_a_traceback(
    run: Run, tmp_path: Path
) -> None:
    first = at_work(run, tmp_path)
    first.send_signal(signal.SIGINT)
    time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    shown = first.communicate(timeout=20)
    assert first.returncode == 130, shown
    assert b"Traceback" not in shown[1]
    assert runs.read_status(run).state == "paused"
