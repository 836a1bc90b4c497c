"""`ftray up` and `ftray down`, through the command line, as a user types them."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from ftray.deployment import standing
from ftray.deployment.processes import ours
from tests.integration.jobs.conftest import free_port

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[3]
ROWS = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]}
    for n in range(8)
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A FTRAY_HOME, for this process and for the commands that it runs."""
    monkeypatch.setenv("FTRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    yield tmp_path / "home"
    ftray("down")


@pytest.fixture
def run_file(tmp_path: Path, small_model: Path) -> str:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "run.yaml").write_text(f"""
name: here
model: {{name: {small_model}}}
adapter: {{rank: 4}}
data: {{train: rows.jsonl, max_length: 64}}
train: {{max_steps: 1, global_batch_size: 1}}
""")
    return str(tmp_path / "run.yaml")


def test_one_command_starts_all_of_it_another_stops_it_and_nothing_else(
    home: Path, run_file: str, small_model: Path
) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    port, model = free_port(), f"model.name={small_model}"
    up = ftray("up", f"http.port={port}", model, "engine.kv_gib=0.2", "--json")
    assert not up["was_up"]
    assert (home / "up" / "token").stat().st_mode & 0o777 == 0o600
    ready = urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz")
    with ready:
        assert ready.status == 200
    again = ftray("up", f"http.port={port}", model, "--json")
    assert again["was_up"]
    assert again["standing"] == up["standing"]

    job = ftray("submit", "train", run_file, "--json")["job"]
    log = words("jobs", "logs", "-f", job["id"])
    assert ftray("jobs", "show", job["id"], "--json")["state"] == "succeeded", log
    assert ftray("adapters", "show", "here", "--json")["version"] == 1
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models") as models:
        assert "here" in {model["id"] for model in json.load(models)["data"]}

    processes = ours(recorded())
    assert len(processes) > 5
    assert ftray("down", "--json")["was_up"]
    assert [process for process in processes if alive(process)] == []
    assert standing.read() is None
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    assert words("down").strip() == "nothing was up"


@pytest.mark.parametrize("victims", [["gcs_server"], ["raylet", "ray start"]])
def test_whatever_was_killed_down_still_cleans_up(
    home: Path, small_model: Path, victims: list[str]
) -> None:
    port = free_port()
    ftray("up", f"http.port={port}", f"model.name={small_model}", "engine.kv_gib=0.2", "--json")
    up = recorded()
    processes = ours(up)
    for process in processes:
        with suppress(psutil.Error):  # another one's end was its own
            command = " ".join(process.cmdline())
            if any(victim in command for victim in victims):
                process.kill()
    ftray("down", "--json")
    assert [process.pid for process in processes if alive(process)] == []
    assert ours(up) == []
    assert not Path(up.session).exists()


def recorded() -> standing.Standing:
    found = standing.read()
    assert found is not None
    return found


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def ftray(*arguments: str) -> Any:
    text = words(*arguments)
    return json.loads(text) if "--json" in arguments else text


def words(*arguments: str) -> str:
    command = [sys.executable, "-m", "ftray", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
