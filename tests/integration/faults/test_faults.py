"""A run that was hit by faults ends with the numbers and the weights of one that was not."""

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).with_name("soak.py")


def test_a_run_survives_a_killed_controller_and_a_killed_command_with_a_damaged_checkpoint(
    tmp_path: Path, small_model: Path
) -> None:
    survived(tmp_path, small_model, "--faults", "2", "--kinds", "controller", "cut")


@pytest.mark.full
def test_a_run_survives_every_kind_of_fault(tmp_path: Path, small_model: Path) -> None:
    survived(tmp_path, small_model, "--faults", "9", "--seed", "1")


def survived(folder: Path, model: Path, *options: str) -> None:
    command = [sys.executable, str(SOAK), "--folder", str(folder), "--model", str(model), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
