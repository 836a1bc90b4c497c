import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from ftray import runs, storage
from ftray.config.base import override
from ftray.config.data import DataConfig
from ftray.config.run import RunConfig, TrainConfig
from ftray.errors import ConfigError, StorageError
from ftray.owner import Owner, this_process
from ftray.records import encode
from ftray.runs import CheckpointRecord, Run, Status

CONFIG = RunConfig(
    name="tickets", data=DataConfig(train="/data/train.jsonl"), train=TrainConfig(epochs=3)
)
ELSEWHERE = Owner(host="another-host", pid=1)


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "root") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def other_process() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def owner_of(process: subprocess.Popen[bytes]) -> Owner:
    return replace(this_process(), pid=process.pid)


def put_status(run: Run, status: Status) -> None:
    """Write a status with a heartbeat of our choice."""
    storage.write(storage.join(run.folder, "status.json"), encode(status))


def put_checkpoint(run: Run, step: int, attempt: int = 1, **fields: bool) -> CheckpointRecord:
    folder = runs.checkpoint_folder(run, step, attempt)
    storage.write(storage.join(folder, "weights"), b"w%d" % step)
    digests = {"weights": hashlib.sha256(b"w%d" % step).hexdigest()}
    record = CheckpointRecord(
        step=step, attempt=attempt, world_size=2, threads=1, files=digests, **fields
    )
    assert runs.write_checkpoint_record(run, record)
    return record


def test_a_new_run_has_its_config_and_a_status(root):
    run = runs.open_run(root, CONFIG)
    assert run.folder == f"{root}/runs/tickets"
    assert runs.read_config(run) == CONFIG
    status = runs.read_status(run)
    assert (status.state, status.attempts, status.step) == ("queued", 1, 0)
    assert status.owner == this_process()
    assert runs.list_runs(root) == {"tickets": status}


def test_an_unfinished_run_with_an_equal_config_resumes_as_the_next_attempt(root):
    run = runs.open_run(root, CONFIG)
    failed = replace(runs.read_status(run), state="failed", step=7, error="out of disk")
    runs.write_status(run, failed)
    assert runs.open_run(root, CONFIG) == run
    status = runs.read_status(run)
    assert (status.state, status.step, status.attempts, status.error) == ("queued", 7, 2, None)


def after_a_step(root):
    run = runs.open_run(root, CONFIG)
    storage.write(f"{run.folder}/metrics.jsonl", b'{"step": 1, "loss": 2.0}\n')


def test_a_changed_config_is_refused_and_every_changed_key_named(root):
    after_a_step(root)
    changed = override(
        CONFIG,
        {"train.learning_rate": 1e-3, "data.columns": {"messages": "chat"}, "adapter.rank": 8},
    )
    with pytest.raises(ConfigError, match="another config") as caught:
        runs.open_run(root, changed)
    assert caught.value.message.splitlines()[1:] == [
        "  adapter.rank: was 16, is 8 now",
        '  data.columns.messages: was not set, is "chat" now',
        "  train.learning_rate: was 0.0002, is 0.001 now",
    ]
    assert "--overwrite" in caught.value.hint


def test_a_run_that_has_taken_no_step_may_be_put_right(root):
    run = runs.open_run(root, CONFIG)
    runs.write_status(run, replace(runs.read_status(run), state="failed", error="no such model"))
    right = override(CONFIG, {"model.name": "./here"})
    assert runs.open_run(root, right) == run
    assert runs.read_config(run) == right


def test_another_method_is_a_changed_config(root):
    after_a_step(root)
    with pytest.raises(ConfigError, match=r"adapter.method: was \"lora\", is \"full\" now"):
        runs.open_run(root, override(CONFIG, {"adapter": {"method": "full"}}))


def test_a_run_with_a_damaged_status_is_deleted_by_force_only(root):
    run = runs.open_run(root, CONFIG)
    storage.write(f"{run.folder}/status.json", b"{")
    with pytest.raises(StorageError, match="not a record"):
        runs.delete_run(root, "tickets")
    runs.delete_run(root, "tickets", force=True)
    assert not storage.exists(run.folder)


def test_what_does_not_change_the_result_may_differ(root):
    run = runs.open_run(root, CONFIG)
    other = override(
        CONFIG,
        {
            "scaling.num_workers": 2,
            "checkpoint.keep": 9,
            "tracking": [],
            "eval.samples": 0,
            "storage": root,
            "train.micro_batch_size": 2,
        },
    )
    runs.open_run(root, other)
    assert runs.read_config(run) == other


def test_a_finished_run_is_refused_and_its_adapter_named(root):
    run = runs.open_run(root, CONFIG)
    done = replace(runs.read_status(run), state="succeeded", adapter="tickets@3")
    runs.write_status(run, done)
    with pytest.raises(ConfigError, match="already succeeded and has published tickets@3"):
        runs.open_run(root, CONFIG)
    assert runs.read_status(run).attempts == 1


def test_overwrite_starts_anew_without_the_old_checkpoints(root):
    run = runs.open_run(root, CONFIG)
    put_checkpoint(run, 10)
    runs.write_status(run, replace(runs.read_status(run), state="succeeded", step=10))
    changed = override(CONFIG, {"train.epochs": 1})
    runs.open_run(root, changed, overwrite=True)
    assert runs.checkpoints(run) == []
    assert runs.read_config(run) == changed
    assert (runs.read_status(run).step, runs.read_status(run).attempts) == (0, 1)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_another_process_drives_is_refused(root, other_process, overwrite):
    run = runs.open_run(root, CONFIG)
    runs.write_status(run, Status(state="running", owner=owner_of(other_process)))
    with pytest.raises(ConfigError, match=f"running in another process .pid {other_process.pid}"):
        runs.open_run(root, CONFIG, overwrite=overwrite)
    with pytest.raises(ConfigError, match="running in another process"):
        runs.delete_run(root, "tickets")
    assert runs.read_status(run).state == "running"
    runs.delete_run(root, "tickets", force=True)
    assert runs.list_runs(root) == {}


def test_a_driver_counts_its_attempts(root):
    run = runs.open_run(root, CONFIG)
    runs.write_status(run, replace(runs.read_status(run), state="running", step=5))
    assert [runs.next_attempt(run), runs.next_attempt(run)] == [2, 3]
    status = runs.read_status(run)
    assert (status.state, status.step, status.attempts) == ("running", 5, 3)
    runs.open_run(root, CONFIG)
    assert runs.read_status(run).attempts == 4


def test_a_driver_killed_a_moment_ago_does_not_hold_its_run(root, other_process):
    run = runs.open_run(root, CONFIG)
    runs.write_status(run, Status(state="running", owner=owner_of(other_process)))
    other_process.send_signal(signal.SIGKILL)
    while psutil.Process(other_process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)  # a zombie until its parent waits for it
    assert runs.read_status(run).state == "lost"
    runs.open_run(root, CONFIG)
    assert runs.read_status(run).attempts == 2


def test_a_run_on_another_host_is_lost_after_a_minute_of_silence(root):
    run = runs.open_run(root, CONFIG)
    put_status(run, Status(state="running", heartbeat=time.time() - 50, owner=ELSEWHERE))
    assert runs.read_status(run).state == "running"
    with pytest.raises(ConfigError, match="on another-host"):
        runs.open_run(root, CONFIG)
    put_status(run, Status(state="running", heartbeat=time.time() - 61, owner=ELSEWHERE))
    assert runs.read_status(run).state == "lost"
    runs.open_run(root, CONFIG)


def test_a_run_that_ended_is_not_lost(root):
    run = runs.open_run(root, CONFIG)
    put_status(run, Status(state="failed", heartbeat=0.0, owner=ELSEWHERE))
    assert runs.read_status(run).state == "failed"


_OPEN = """
import sys, time
from ftray import runs
from ftray.config.data import DataConfig
from ftray.config.run import RunConfig, TrainConfig
from ftray.errors import ConfigError
config = RunConfig(name="tickets", data=DataConfig(train="/d"), train=TrainConfig(epochs=1))
print("ready", flush=True)
sys.stdin.readline()
try:
    runs.open_run(sys.argv[1], config)
    print("opened", flush=True)
except ConfigError as error:
    print(error.message, flush=True)
sys.stdin.readline()  # a driver lives on
"""


def test_of_processes_that_open_one_run_at_once_one_gets_it(tmp_path):
    commands = [[sys.executable, "-c", _OPEN, str(tmp_path)]] * 3
    pipe = subprocess.PIPE
    drivers = [subprocess.Popen(c, stdin=pipe, stdout=pipe, text=True) for c in commands]
    for driver in drivers:
        assert driver.stdout.readline() == "ready\n"
    for driver in drivers:
        driver.stdin.write("\n")
        driver.stdin.flush()
    answers = [driver.stdout.readline() for driver in drivers]
    for driver in drivers:
        driver.communicate("\n", timeout=30)
    assert answers.count("opened\n") == 1
    assert sum("in another process" in answer for answer in answers) == 2


def test_a_name_never_becomes_a_path_unchecked(root):
    for name in ("../tickets", "a/b", "", ".", "..", "UPPER", "a\n", "x" * 64):
        with pytest.raises(ConfigError, match="run name"):
            Run(root, name)


def test_an_unknown_run_is_answered_with_the_closest_name(root):
    runs.open_run(root, CONFIG)
    with pytest.raises(ConfigError, match="no run 'tickts'") as caught:
        runs.delete_run(root, "tickts")
    assert caught.value.hint == "did you mean 'tickets'?"


def test_metrics_leave_out_a_torn_line(root):
    run = runs.open_run(root, CONFIG)
    assert runs.read_metrics(run) == []
    lines = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": float("nan")}]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"step": 3, "lo'
    storage.write(storage.join(run.folder, "metrics.jsonl"), text.encode())
    first, second = runs.read_metrics(run)
    assert first == lines[0]
    assert second["step"] == 2


def test_listing_leaves_out_what_is_no_run(root):
    runs.open_run(root, CONFIG)
    for name in ("half-written/run.yaml", ".DS_Store", "Foreign/x", "odd/status.json"):
        storage.write(storage.join(root, "runs", name), b"[]")
    assert list(runs.list_runs(root)) == ["tickets"]


def test_a_status_of_a_newer_ftray_is_not_misread(root):
    run = runs.open_run(root, CONFIG)
    storage.write(storage.join(run.folder, "status.json"), b'{"schema": 2, "state": "dreaming"}')
    with pytest.raises(StorageError, match="written by a newer ftray"):
        runs.open_run(root, CONFIG)


def test_a_run_does_not_go_on_with_other_data(root):
    run = runs.open_run(root, CONFIG)
    runs.keep_data(run, {"data.train": "a", "data.eval": None})
    runs.keep_data(run, {"data.train": "b", "data.eval": None})  # before any step: put right
    storage.write(storage.join(run.folder, "metrics.jsonl"), b'{"step": 1, "loss": 2.0}\n')
    runs.keep_data(run, {"data.train": "b", "data.eval": None})
    with pytest.raises(ConfigError, match=r"data\.train and data\.eval changed since run"):
        runs.keep_data(run, {"data.train": "c", "data.eval": "d"})


def test_checkpoints_are_the_recorded_ones_the_furthest_first(root):
    run = runs.open_run(root, CONFIG)
    third = put_checkpoint(run, 200, attempt=2)
    first = put_checkpoint(run, 100)
    second = put_checkpoint(run, 200)
    folder = storage.join(run.folder, "checkpoints")
    storage.write(storage.join(folder, "step-000300-a2", "weights"), b"")  # no record
    storage.write(storage.join(folder, "step-000400-a2", "record.json"), b"{")
    storage.write(storage.join(folder, "notes", "record.json"), b"{}")
    assert runs.checkpoints(run) == [third, second, first]


def test_a_checkpoint_is_published_once(root):
    run = runs.open_run(root, CONFIG)
    record = put_checkpoint(run, 100)
    assert not runs.write_checkpoint_record(run, replace(record, threads=9))
    assert runs.checkpoints(run) == [record]


def test_verify_names_damaged_checkpoint_files(root):
    run = runs.open_run(root, CONFIG)
    record = put_checkpoint(run, 100)
    assert runs.verify(run, record) == []
    path = storage.join(runs.checkpoint_folder(run, 100, 1), "weights")
    storage.write(path, b"bit rot")
    assert [path in problem for problem in runs.verify(run, record)] == [True]
    storage.delete(path)
    assert runs.verify(run, record) == [f"{path}: missing"]


def test_prune_keeps_the_newest_and_the_best(root):
    run = runs.open_run(root, CONFIG)
    put_checkpoint(run, 100, best=True)
    best = put_checkpoint(run, 200, best=True)
    put_checkpoint(run, 300)
    newest = [put_checkpoint(run, 500), put_checkpoint(run, 400)]
    assert [record.step for record in runs.prune(run, keep=2)] == [300, 100]
    assert runs.checkpoints(run) == [*newest, best]
    assert runs.prune(run, keep=2) == []


def test_what_earlier_attempts_never_published_goes_and_damaged_records_are_counted(root):
    run = runs.open_run(root, CONFIG)
    folder = storage.join(run.folder, "checkpoints")
    for name in ("step-000100-a1", "step-000100-a2"):
        storage.write(storage.join(folder, name, "weights"), b"")
    storage.write(storage.join(folder, "step-000200-a1", "record.json"), b'{"schema": 1, "st')
    whole = put_checkpoint(run, 50, attempt=1)
    assert runs.delete_unpublished(run, before=2) == 1
    assert storage.names(folder) == ["step-000050-a1", "step-000100-a2"]  # a2 may be on its way
    assert runs.checkpoints(run) == [whole]


def test_an_interrupted_run_deletion_leaves_a_run_that_can_be_deleted(tmp_path, monkeypatch):
    run = runs.open_run(str(tmp_path), CONFIG)
    put_checkpoint(run, 100)
    kept = os.unlink

    def interrupted(path: str, **at: int) -> None:
        if str(path).endswith("run.yaml"):
            raise OSError(5, "Input/output error")
        kept(path, **at)

    monkeypatch.setattr(os, "unlink", interrupted)
    with pytest.raises(StorageError):
        runs.delete_run(str(tmp_path), "tickets")
    monkeypatch.undo()
    assert list(runs.list_runs(str(tmp_path))) == ["tickets"]
    assert runs.checkpoints(run) == []
    runs.delete_run(str(tmp_path), "tickets")
    assert runs.list_runs(str(tmp_path)) == {}
