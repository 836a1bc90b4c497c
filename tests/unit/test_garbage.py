"""What `ftray gc` finds and deletes, in roots that runs, registry and token sets have filled."""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest

from ftray import registry, runs, storage
from ftray.cli import main
from ftray.config.data import DataConfig
from ftray.config.run import RunConfig, TrainConfig
from ftray.data.tokens.manifest import (
    FileRecord,
    Manifest,
    ShardRecord,
    TokenPlan,
    find_token_set,
    publish_manifest,
    publish_plan,
    publish_shard,
)
from ftray.errors import ConfigError
from ftray.garbage.policy import DAY, Policy
from ftray.garbage.sweep import Disk, look, sweep
from ftray.records import encode
from ftray.registry import AdapterRecord, BaseModel
from ftray.runs import CheckpointRecord, Run, State, Status

WEEK = Policy(7 * DAY)
DIGEST = "a1" * 16
OTHER = "b2" * 16

Age = Callable[[str, float], None]


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FTRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return str(tmp_path / "root") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def age(folder: str, days: float) -> None:
    """Let all files below a folder be as old as that."""
    then = time.time() - days * DAY
    if not storage.is_uri(folder):
        for file in Path(folder).rglob("*"):
            os.utime(file, (then, then))
        return
    filesystem = fsspec.filesystem("memory")
    for key in filesystem.find(folder):
        filesystem.store[key].created = datetime.fromtimestamp(then, UTC)


def token_set(folder: str, *, is_complete: bool = True) -> str:
    """Make a token set of one shard and return its folder."""
    digest = folder.rpartition("/")[2]
    record = ShardRecord(
        **dict.fromkeys(("range", "part", "source"), 0),
        **dict.fromkeys(("lines", "source_rows", "rows", "tokens", "label_tokens"), 5),
        **{"bad_rows": 0, "reasons": {}, "first_bad": [], "is_last": True},
        **{"bytes": 1000, "columns_bytes": 1000, "sha256": ""},
    )
    plan = TokenPlan(digest, "", ["x"], [FileRecord(0, "x.jsonl", "jsonl", 1, 9)])
    publish_plan(folder, plan)
    publish_shard(folder, b"t" * 1000, b"c" * 1000, record)
    if is_complete:
        publish_manifest(folder, Manifest(plan, [record]))
    return folder


def shared_tokens(root: str, digest: str = DIGEST, *, is_complete: bool = True) -> str:
    return token_set(f"{root}/tokens/{digest}", is_complete=is_complete)


def a_run(root: str, state: State, *, name: str = "bot", days: float = 0, **told: str) -> Run:
    """Open a run, with a checkpoint, that was last heard of so many days ago."""
    config = RunConfig(name=name, data=DataConfig(train="/x.jsonl"), train=TrainConfig(epochs=1))
    run = runs.open_run(root, config)
    status = Status(state=state, heartbeat=time.time() - days * DAY, **told)
    storage.write(f"{run.folder}/status.json", encode(status))
    checkpoint(run)
    return run


def checkpoint(run: Run, step: int = 10, *, is_complete: bool = True) -> str:
    folder = runs.checkpoint_folder(run, step, attempt=1)
    storage.write(f"{folder}/weights", b"w" * 500)
    record = CheckpointRecord(
        step=step,
        attempt=1,
        world_size=1,
        threads=1,
        files={"weights": hashlib.sha256(b"w" * 500).hexdigest()},
    )
    if is_complete:
        runs.write_checkpoint_record(run, record)
    return folder


def an_adapter(root: str, tmp_path: Path, name: str = "bot") -> AdapterRecord:
    made = tmp_path / "adapter"
    made.mkdir(exist_ok=True)
    (made / "adapter_model.safetensors").write_bytes(b"weights")
    draft = AdapterRecord(
        name=name,
        kind="adapter",
        base=BaseModel(name="base", revision=None, fingerprint="f"),
        method="lora",
        rank=8,
        tokenizer_digest="t",
        template_digest="c",
    )
    return registry.publish(root, made, draft)


def may_go(root: str, policy: Policy = WEEK) -> dict[str, str]:
    """Return what may go, by its path below the root, and why."""
    found = look(root, policy).may_go
    return {garbage.path.removeprefix(f"{root}/"): garbage.why for garbage in found}


def total(disk: Disk, kind: str) -> tuple[int, int]:
    """Return how much there is of a kind, and how much of it may go."""
    [found] = [total for total in disk.totals if total.kind == kind]
    return found.count, found.may_go


def test_a_root_without_anything_has_nothing_that_may_go(root: str):
    disk = look(root, WEEK)
    assert disk.may_go == []
    assert {total.size for total in disk.totals} == {0}


def test_tokens_that_no_run_uses_go_when_they_are_old(root: str):
    folder = shared_tokens(root)
    assert may_go(root) == {}
    age(folder, 6)
    assert may_go(root) == {}
    age(folder, 8)
    assert may_go(root) == {f"tokens/{DIGEST}": "no run uses it"}
    assert may_go(root, Policy(9 * DAY)) == {}


def test_tokens_that_have_just_been_made_stay_however_short_the_time(root: str):
    folder = shared_tokens(root)
    assert may_go(root, Policy(0)) == {}
    age(folder, 0.1)
    assert may_go(root, Policy(0)) == {f"tokens/{DIGEST}": "no run uses it"}


@pytest.mark.parametrize("state", ["queued", "running"])
def test_tokens_of_a_run_at_work_stay(root: str, state: State):
    runs.keep_data(a_run(root, state), {"data.train": OTHER, "data.eval": DIGEST})
    age(shared_tokens(root), 30)
    assert may_go(root) == {}


def test_while_a_run_has_not_said_which_tokens_it_uses_none_go(root: str):
    run = a_run(root, "queued")
    age(shared_tokens(root), 30)
    assert may_go(root) == {}
    runs.keep_data(run, {"data.train": OTHER, "data.eval": None})
    assert may_go(root) == {f"tokens/{DIGEST}": "no run uses it"}


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ("succeeded", "only finished runs use it"),
        ("paused", "only silent runs use it: made again if one goes on"),
        ("running", "only silent runs use it: made again if one goes on"),  # a lost one
    ],
)
def test_tokens_of_a_run_that_ended_go_when_it_is_long_ago(root: str, state: State, why: str):
    age(shared_tokens(root), 30)
    runs.keep_data(a_run(root, state, days=6), {"data.train": DIGEST})
    assert may_go(root) == {}
    assert may_go(root, Policy(5 * DAY)) == {f"tokens/{DIGEST}": why}


def test_tokens_that_were_never_completed_go_after_a_day(root: str):
    folder = shared_tokens(root, is_complete=False)
    age(folder, 0.9)
    assert may_go(root) == {}
    age(folder, 1.1)
    assert may_go(root) == {f"tokens/{DIGEST}": "never completed"}
    runs.keep_data(a_run(root, "failed"), {"data.train": DIGEST})
    assert may_go(root) == {}


def test_a_published_runs_checkpoints_and_own_tokens_go_and_its_record_stays(root, tmp_path):
    record = an_adapter(root, tmp_path)
    run = a_run(root, "succeeded", adapter=record.ref)
    token_set(f"{run.folder}/tokens/{DIGEST}")
    why = "its run has published its adapter"
    places = (f"runs/bot/tokens/{DIGEST}", "runs/bot/checkpoints/step-000010-a1")
    assert may_go(root) == dict.fromkeys(places, why)
    disk = sweep(look(root, WEEK), WEEK)
    assert (len(disk.gone), disk.stayed, may_go(root)) == (2, [], {})
    assert runs.read_status(run).state == "succeeded"
    assert runs.checkpoints(run) == []
    assert registry.resolve(root, "bot") == record


def test_checkpoints_stay_where_the_adapter_is_gone(root, tmp_path):
    record = an_adapter(root, tmp_path)
    a_run(root, "succeeded", adapter=record.ref, days=30)
    registry.delete(root, record.ref)
    assert may_go(root) == {}
    assert total(look(root, WEEK), "adapters") == (0, 0)


@pytest.mark.parametrize("state", ["paused", "failed", "running", "cancelled"])
def test_checkpoints_of_a_run_that_can_go_on_go_only_when_it_is_named(root: str, state: State):
    run = a_run(root, state, days=30)
    token_set(f"{run.folder}/tokens/{DIGEST}")
    age(run.folder, 30)
    named = Policy(7 * DAY, frozenset(["bot"]))
    assert may_go(root) == {}
    assert len(may_go(root, named)) == 2
    assert may_go(root, replace(named, keep_seconds=31 * DAY)) == {}
    runs.write_status(run, Status(state="running"))  # it goes on
    assert may_go(root, named) == {}


def test_naming_a_run_that_does_not_exist_is_refused(root: str):
    a_run(root, "paused")
    with pytest.raises(ConfigError, match="no run 'bto'") as refused:
        look(root, Policy(0, frozenset(["bto"])))
    assert "did you mean 'bot'" in refused.value.hint


def test_a_torn_checkpoint_goes_after_a_day_unless_its_run_is_at_work(root: str):
    run = a_run(root, "paused")
    age(checkpoint(run, 20, is_complete=False), 2)
    torn = {"runs/bot/checkpoints/step-000020-a1": "never completed"}
    assert may_go(root) == torn
    runs.write_status(run, Status(state="running"))
    assert may_go(root) == {}


def test_of_a_publisher_that_died_only_the_number_stays(root, tmp_path):
    an_adapter(root, tmp_path)
    storage.create(f"{root}/adapters/bot/2/claim.json", b"{}")
    storage.write(f"{root}/adapters/bot/2/weights", b"w" * 100)
    assert may_go(root) == {}
    age(f"{root}/adapters/bot", 2)
    assert may_go(root) == {"adapters/bot/2": "never completed"}
    sweep(look(root, WEEK), WEEK)
    assert may_go(root) == {}
    assert an_adapter(root, tmp_path).ref == "bot@3"
    assert [record.version for record in registry.versions(root, "bot")] == [1, 3]


def test_what_aliases_point_at_stays_whatever_its_age(root, tmp_path):
    registry.promote(root, an_adapter(root, tmp_path).ref, "live")
    age(root, 400)
    assert may_go(root, Policy(0)) == {}
    assert total(look(root, WEEK), "adapters") == (1, 0)


def test_files_that_ftray_did_not_make_are_no_garbage(root: str):
    for name in ("tokens/notes/a.txt", "runs/tensorboard/events", "runs/x", "adapters/y/z/w"):
        storage.write(f"{root}/{name}", b"mine")
    age(root, 400)
    assert may_go(root, Policy(0)) == {}


def test_writes_and_unpackings_that_were_cut_off_go_after_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    root = str(tmp_path / "root")
    run = a_run(root, "paused")
    left = [
        f"{run.folder}/.metrics.jsonl.0123abcd.tmp",
        f"{root}/tokens/.{DIGEST}.0123abcd.tmp/shard-000000.arrow",
        f"{root}/cache/models/.smollm2-xyz/model.safetensors",
    ]
    for path in left:
        storage.write(path, b"half")
    assert may_go(root) == {}
    age(root, 1.1)
    assert set(may_go(root).values()) == {"a write that was cut off"}
    assert len(may_go(root)) == 3
    disk = sweep(look(root, WEEK), WEEK)
    assert (disk.freed, [path for path in left if Path(path).exists()]) == (12, [])
    assert runs.list_runs(root)["bot"].state == "paused"


def test_copies_of_shards_go_when_nobody_has_read_them_lately(tmp_path, monkeypatch):
    monkeypatch.setenv("FTRAY_HOME", str(tmp_path / "home"))
    root = f"memory://{uuid.uuid4().hex}"
    folder = shared_tokens(root)
    cache = storage.local_cache(root) / "tokens"
    copy = storage.local_copy(f"{folder}/shard-000000.arrow", cache)
    assert may_go(root) == {}
    age(str(cache), 8)
    assert set(may_go(root).values()) == {"not read lately"}
    disk = sweep(look(root, WEEK), WEEK)
    assert (disk.freed, copy.exists()) == (1000, False)
    assert find_token_set(folder) is not None


def test_a_run_that_starts_meanwhile_keeps_its_tokens(root: str):
    used, unused = shared_tokens(root), shared_tokens(root, OTHER)
    age(f"{root}/tokens", 30)
    before = look(root, WEEK)
    assert len(before.may_go) == 2
    runs.keep_data(a_run(root, "running"), {"data.train": DIGEST})
    disk = sweep(before, WEEK)
    assert [garbage.path for garbage in disk.gone] == [unused]
    assert [(piece.path, piece.is_error) for piece in disk.stayed] == [(used, False)]
    assert find_token_set(used) is not None
    assert not storage.exists(unused)


def test_what_is_freed_is_what_the_disk_gains(root, tmp_path):
    record = an_adapter(root, tmp_path)
    a_run(root, "succeeded", adapter=record.ref)
    a_run(root, "paused", name="other")
    age(shared_tokens(root), 30)
    before, disk = bytes_in(root), look(root, WEEK)
    assert sum(found.size for found in disk.totals) == before
    assert [garbage.size for garbage in disk.may_go] == sorted(
        (garbage.size for garbage in disk.may_go), reverse=True
    )
    assert bytes_in(root) == before
    done = sweep(disk, WEEK)
    assert done.freed == before - bytes_in(root) > 2000
    assert may_go(root) == {}


def bytes_in(root: str) -> int:
    return sum(held.size for held in storage.contents(root))


def test_what_cannot_be_deleted_is_told_and_the_rest_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = str(tmp_path)
    too_long = f"{root}/tokens/.{'x' * 235}.0123abcd.tmp"  # no room for the name that it goes by
    storage.write(f"{too_long}/shard", b"half")
    storage.write(f"{root}/runs/.x.0123abcd.tmp/y", b"half")
    age(root, 2)
    assert main(["gc", "--delete", "--storage", root]) == 8
    shown = capsys.readouterr().out
    assert "File name too long" in shown
    assert "4 B freed, 1 deleted" in shown


def test_gc_shows_what_there_is_and_deletes_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = str(tmp_path / "root")
    record = an_adapter(root, tmp_path)
    a_run(root, "succeeded", adapter=record.ref)
    assert main(["gc", "--storage", root]) == 0
    shown = capsys.readouterr().out
    for text in ("checkpoints  1", "1: its run has published its adapter", "step-000010-a1"):
        assert text in shown
    assert main(["gc", "--storage", root, "--delete", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["freed"] == told["gone"][0]["size"] > 500
    assert main(["gc", "--storage", root]) == 0
    assert "nothing may go" in capsys.readouterr().out
    assert main(["gc", "--older-than", "soon"]) == 2
    assert "expected a number of days, found 'soon'" in capsys.readouterr().err
