"""Ctrl-C, or a kill, saves and pauses a run; the same command goes on with it."""

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


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "kill"])
def test_an_interrupted_run_is_paused_and_goes_on(
    tmp_path: Path, small_model: Path, sign: signal.Signals
) -> None:
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
    run = Run(str(tmp_path / "root"), "paused")
    command = [sys.executable, "-m", "ftray", "train", "run.yaml", "--cluster", "cluster.yaml"]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not any(line["step"] >= 3 for line in runs.read_metrics(run)):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    first.send_signal(sign)
    shown = first.communicate(timeout=120)
    assert first.returncode == 130, shown
    status = runs.read_status(run)
    assert (status.state, status.error) == ("paused", None)
    assert b"go on: ftray train run.yaml --cluster cluster.yaml" in shown[1]
    done = max(line["step"] for line in runs.read_metrics(run))
    assert runs.checkpoints(run)[0].step == done  # no step is lost
    subprocess.run([*command, "train.max_steps=60"], cwd=tmp_path, check=True, timeout=400)
    status = runs.read_status(run)
    assert (status.state, status.step, status.attempts) == ("succeeded", 60, 2)
    steps = [line["step"] for line in runs.read_metrics(run)]
    assert steps == list(range(1, 61))
