"""What `ftray gc` finds of searches, and what of it may go."""

import time
import uuid
from pathlib import Path

import pytest

from ftray import runs, searches, storage
from ftray.garbage.policy import Policy
from ftray.garbage.sweep import look, sweep
from ftray.records import encode
from ftray.searches import Search, SearchStatus
from tests.unit.test_garbage import (
    DIGEST,
    WEEK,
    a_run,
    age,
    an_adapter,
    may_go,
    shared_tokens,
    total,
)


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FTRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return str(tmp_path / "root") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def a_search(root: str, state: searches.State, adapter: str | None = None) -> str:
    """Make a search with one trial's saved state, and return that state's path below the root."""
    search = Search(root, "ranks")
    status = SearchStatus(state=state, heartbeat=time.time(), adapter=adapter)
    storage.write(f"{search.folder}/status.json", encode(status))
    storage.write(f"{search.folder}/trials/t1/trial.json", b"{}")
    for name in ("record.json", "adapter-000002.safetensors"):
        storage.write(f"{search.folder}/trials/t1/step-000002/{name}", b"s" * 300)
    return "searches/ranks/trials/t1/step-000002"


def test_a_search_is_counted_and_its_states_go_once_its_best_is_published(root, tmp_path):
    state = a_search(root, "paused")
    disk = look(root, Policy(0))
    assert (total(disk, "searches"), total(disk, "trial states")) == ((1, 0), (1, 0))
    record = an_adapter(root, tmp_path)
    a_search(root, "succeeded", record.ref)
    assert may_go(root) == {state: "its search has published its adapter"}
    sweep(look(root, WEEK), WEEK)
    assert storage.names(f"{root}/searches/ranks/trials/t1") == ["trial.json"]


def test_a_search_that_published_nothing_keeps_its_states(root):
    a_search(root, "succeeded")
    assert may_go(root, Policy(0)) == {}


def test_while_a_search_is_at_work_no_tokens_go(root):
    age(shared_tokens(root), 30)
    a_search(root, "running")
    assert may_go(root) == {}
    a_search(root, "paused")
    assert may_go(root) == {f"tokens/{DIGEST}": "no run uses it"}


def test_checkpoints_of_ordinary_trials_go_with_their_search(root, tmp_path):
    run = a_run(root, "paused", name=searches.run_name("ranks", "t1"))
    a_search(root, "paused")
    assert may_go(root) == {}
    a_search(root, "succeeded", an_adapter(root, tmp_path).ref)
    folder = runs.checkpoint_folder(run, 10, 1).removeprefix(f"{root}/")
    assert may_go(root)[folder] == "its search has published its adapter"
