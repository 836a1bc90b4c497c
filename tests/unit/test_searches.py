"""The folder of a search: claimed by one process, gone on with, refused with a reason."""

import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from ftray import runs, searches, storage
from ftray.config.base import override
from ftray.config.run import RunConfig
from ftray.config.search import SearchConfig
from ftray.errors import ConfigError
from ftray.owner import this_process
from ftray.searches import Search, change_status, open_search, read_status

RUN = RunConfig.model_validate(
    {"name": "tickets", "data": {"train": "a.jsonl", "eval": "b.jsonl"}, "train": {"max_steps": 9}}
)
ASKED = SearchConfig.model_validate({"space": {"adapter.rank": {"choice": [4, 8]}}})
DEAD = replace(this_process(), pid=2**22 + 1)  # above Linux's highest process id


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def begun(root: str, state: searches.State = "paused") -> Search:
    """A search of another process that has drawn a trial."""
    search = open_search(root, RUN, ASKED).search
    storage.write(storage.join(search.folder, "trials", "a", "trial.json"), b"{}")
    change_status(search, lambda status: replace(status, state=state, owner=DEAD))
    return search


def test_a_new_search_has_the_runs_name_and_writes_what_was_asked(root: str):
    opened = open_search(root, RUN, ASKED)
    assert (opened.search.name, opened.is_new) == ("tickets", True)
    assert read_status(opened.search).state == "running"
    assert set(storage.names(opened.search.folder)) >= {"run.yaml", "space.yaml", "status.json"}


@pytest.mark.parametrize("state", ["paused", "failed", "running"])
def test_one_that_was_interrupted_is_gone_on_with(root: str, state: searches.State):
    begun(root, state)
    opened = open_search(root, RUN, ASKED)
    assert not opened.is_new
    status = read_status(opened.search)
    assert (status.state, status.attempts, status.error) == ("running", 2, None)


def test_one_that_has_finished_is_refused_and_overwrite_deletes_it_with_its_runs(root: str):
    search = begun(root, "succeeded")
    run = runs.open_run(root, override(RUN, {"name": searches.run_name("tickets", "a")}))
    other = runs.open_run(root, override(RUN, {"name": "other"}))
    with pytest.raises(ConfigError, match="'tickets' has already finished: its report is in"):
        open_search(root, RUN, ASKED)
    assert open_search(root, RUN, ASKED, overwrite=True).is_new
    assert storage.names(storage.join(search.folder, "trials")) == []
    assert set(runs.list_runs(root)) == {other.name}
    assert not storage.exists(storage.join(run.folder, "status.json"))


def test_one_that_has_begun_with_another_config_is_refused_by_key(root: str):
    begun(root)
    run = override(RUN, {"train.max_steps": 10})
    asked = override(ASKED, {"space": {"adapter.rank": {"choice": [4, 16]}}, "num_samples": 2})
    with pytest.raises(ConfigError) as caught:
        open_search(root, run, asked)
    keys = [line.split(":")[0].strip() for line in caught.value.message.splitlines()[1:]]
    assert keys == ["train.max_steps", "num_samples", "space.adapter.rank"]


def test_where_trials_train_and_when_to_end_may_change(root: str):
    begun(root)
    changes = {"hosts.count": 2, "budget.seconds": 60, "publish.alias": "champion"}
    assert not open_search(root, RUN, override(ASKED, changes)).is_new


def test_before_a_trial_is_drawn_a_mistake_can_be_put_right(root: str):
    search = open_search(root, RUN, ASKED).search
    change_status(search, lambda status: replace(status, state="failed", owner=DEAD))
    assert open_search(root, RUN, override(ASKED, {"num_samples": 2})).is_new


def test_a_search_that_another_process_works_on_is_refused(root: str):
    search = begun(root)
    elsewhere = replace(this_process(), host="elsewhere")
    change_status(search, lambda status: replace(status, state="running", owner=elsewhere))
    with pytest.raises(ConfigError, match="running in another process"):
        open_search(root, RUN, ASKED)


def test_a_search_without_a_heartbeat_counts_as_lost(root: str, monkeypatch: pytest.MonkeyPatch):
    search = begun(root)
    elsewhere = replace(this_process(), host="elsewhere")
    change_status(search, lambda status: replace(status, state="running", owner=elsewhere))
    later = time.time() + 61
    monkeypatch.setattr("time.time", lambda: later)
    assert read_status(search).state == "lost"
    assert not open_search(root, RUN, ASKED).is_new


def test_searches_are_listed_and_what_is_none_is_left_out(root: str):
    begun(root)
    storage.write(storage.join(root, "searches", "foreign", "note.txt"), b"")
    storage.write(storage.join(root, "searches", "torn", "status.json"), b"{")
    assert {name: status.state for name, status in searches.list_searches(root).items()} == {
        "tickets": "paused"
    }


def test_a_trials_run_is_known_by_its_name():
    assert searches.search_of(searches.run_name("my.search", "1a2b_00003")) == "my.search"
    assert searches.search_of("lone") == ""


def test_a_name_that_leads_out_of_the_root_is_refused(root: str):
    with pytest.raises(ConfigError, match="search name"):
        Search(root, "../other")
    with pytest.raises(ConfigError, match="no search 'unknown'"):
        read_status(Search(root, "unknown"))
