"""The folder of a search: who works on it, what was asked for, and whether that has changed."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, Literal

import yaml

from ftray import runs, storage
from ftray.config.base import ConfigT, to_yaml, validated
from ftray.config.changes import changes
from ftray.config.run import RunConfig
from ftray.config.search import SearchConfig
from ftray.errors import ConfigError
from ftray.owner import Owner, this_process
from ftray.records import Record, RecordError, check_name, encode, read_record
from ftray.runs import LOST_AFTER_SECONDS

logger = logging.getLogger(__name__)

State = Literal["running", "succeeded", "failed", "paused", "lost"]

# They say where trials train and when to end, not what a trial is.
_MAY_CHANGE = ("hosts", "budget", "publish")


@dataclass(frozen=True)
class Search:
    """A search's place below a storage root; ConfigError when the name could lead out of it."""

    root: str
    name: str

    def __post_init__(self) -> None:
        try:
            check_name(self.name, "search name")
        except ValueError as error:
            raise ConfigError(str(error)) from None

    @property
    def folder(self) -> str:
        """Where all of it is."""
        return storage.join(self.root, "searches", self.name)


@dataclass(frozen=True, kw_only=True)
class SearchStatus(Record):
    """How far a search is, and the time that it has taken over all its starts."""

    state: State = "running"
    trials: int = 0  # that have ended
    total_trials: int = 0
    seconds: float = 0.0
    host_seconds: float = 0.0
    attempts: int = 1
    heartbeat: float = 0.0  # unix seconds
    error: str | None = None
    adapter: str | None = None  # the best trial's, once it is published
    owner: Owner | None = None


@dataclass(frozen=True)
class Opened:
    """A search that this process may work on; `is_new` where no trial has begun."""

    search: Search
    is_new: bool


def open_search(
    root: str, run: RunConfig, asked: SearchConfig, *, overwrite: bool = False
) -> Opened:
    """Claim a search for this process: a new one, or one that was interrupted.

    Raises ConfigError when the name is taken: by a search that has finished, that has begun with
    another config, or that another process is at.
    """
    search = Search(root, asked.name or run.name)
    status = _stored(search)
    if status is not None:
        _refuse_if_alive(search, status)
        if overwrite:
            _delete(search)
            status = None
        else:
            _refuse_if_finished(search, status)
            _refuse_if_changed(search, run, asked)
    attempt = _claim(search, after=status.attempts if status else 0)
    storage.write(storage.join(search.folder, "run.yaml"), to_yaml(run).encode())
    storage.write(storage.join(search.folder, "space.yaml"), to_yaml(asked).encode())
    fresh = replace(status or SearchStatus(), state="running", attempts=attempt, error=None)
    _write(search, replace(fresh, owner=this_process()))
    return Opened(search, is_new=not has_begun(search))


def read_status(search: Search) -> SearchStatus:
    """Return the status; its state is `lost` when whoever was at it has gone silent."""
    status = _stored(search)
    if status is None:
        raise ConfigError(f"no search '{search.name}' in {search.root}")
    is_silent = status.state == "running" and not _is_alive(status)
    return replace(status, state="lost") if is_silent else status


def list_searches(root: str) -> dict[str, SearchStatus]:
    """Return the status of every search by its name."""
    found = {}
    for name in storage.names(storage.join(root, "searches")):
        try:
            found[name] = read_status(Search(root, name))
        except (ConfigError, RecordError):
            logger.debug("%s/searches/%s is no search", root, name)  # foreign or half-written
    return found


def run_name(search: str, trial_id: str) -> str:
    """Name the run that an ordinary trial is."""
    return f"{search}.{trial_id}"


def search_of(run: str) -> str:
    """Return the search that a run of this name would be a trial of."""
    return run.rpartition(".")[0]


def change_status(search: Search, change: Callable[[SearchStatus], SearchStatus]) -> None:
    """Replace the status by what `change` makes of it; threads of the driver lose no update."""
    with _CHANGING:
        _write(search, change(_stored(search) or SearchStatus()))


_CHANGING = Lock()


def has_begun(search: Search) -> bool:
    """Whether any trial has been drawn."""
    return bool(storage.names(storage.join(search.folder, "trials")))


def tune_folder(search: Search) -> str:
    """Return where Ray Tune keeps its own state."""
    return storage.join(search.folder, "tune")


def _delete(search: Search) -> None:
    """Delete a search, with the runs that its trials are; what they have published stays."""
    known = runs.list_runs(search.root)
    for trial_id in storage.names(storage.join(search.folder, "trials")):
        if (name := run_name(search.name, trial_id)) in known:
            runs.delete_run(search.root, name, force=True)
    storage.delete(search.folder)


def _path(search: Search) -> str:
    return storage.join(search.folder, "status.json")


def _stored(search: Search) -> SearchStatus | None:
    return read_record(_path(search), SearchStatus)


def _write(search: Search, status: SearchStatus) -> None:
    storage.write(_path(search), encode(replace(status, heartbeat=time.time())))


def _is_alive(status: SearchStatus) -> bool:
    if status.state != "running" or (status.owner is not None and status.owner.is_dead):
        return False
    return time.time() - status.heartbeat <= LOST_AFTER_SECONDS


def _refuse_if_alive(search: Search, status: SearchStatus) -> None:
    owner = status.owner
    if not _is_alive(status) or (owner is not None and owner.is_me):
        return
    age = time.time() - status.heartbeat
    raise ConfigError(
        f"search '{search.name}' is running in another process ({owner}), last heard of"
        f" {age:.0f} s ago",
        "stop that process, or choose a new name",
    )


def _refuse_if_finished(search: Search, status: SearchStatus) -> None:
    if status.state == "succeeded":
        raise ConfigError(
            f"search '{search.name}' has already finished: its report is in"
            f" {storage.join(search.folder, 'report')}",
            "choose a new name, or start it anew with --overwrite",
        )


def _refuse_if_changed(search: Search, run: RunConfig, asked: SearchConfig) -> None:
    if not has_begun(search):  # a mistake was put right: nothing to mix up
        return
    run_before = _read(search, "run.yaml", RunConfig)
    asked_before = _read(search, "space.yaml", SearchConfig)
    changed = [*changes(run_before, run), *_search_changes(asked_before, asked)]
    if changed:
        raise ConfigError(
            "\n  ".join([f"search '{search.name}' has begun with another config:", *changed]),
            "choose a new name, or start it anew with --overwrite",
        )


def _read(search: Search, name: str, kind: type[ConfigT]) -> ConfigT:
    path = storage.join(search.folder, name)
    return validated(kind, yaml.safe_load(storage.read(path)), source=path)


def _search_changes(before: SearchConfig, now: SearchConfig) -> list[str]:
    """Return a line for each key of the space file that makes other trials, and has changed."""
    old, new = _flat(before), _flat(now)
    return [
        f"{key}: was {_shown(old, key)}, is {_shown(new, key)} now"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and key.partition(".")[0] not in _MAY_CHANGE
    ]


def _flat(asked: SearchConfig) -> dict[str, Any]:
    """One entry a key, two levels deep: a distribution is one value."""
    flat: dict[str, Any] = {}
    for key, value in asked.model_dump(mode="json", exclude_none=True).items():
        is_tree = isinstance(value, dict)
        flat |= {f"{key}.{name}": one for name, one in value.items()} if is_tree else {key: value}
    return flat


def _shown(flat: dict[str, Any], key: str) -> str:
    return json.dumps(flat[key], ensure_ascii=False) if key in flat else "not set"


def _claim(search: Search, *, after: int) -> int:
    """Take the next attempt's number; of two processes that ask at once one is refused."""
    attempt = after + 1
    mine = SearchStatus(attempts=attempt, heartbeat=time.time(), owner=this_process())
    while not storage.create(_claim_path(search, attempt), encode(mine)):
        other = read_record(_claim_path(search, attempt), SearchStatus)
        if other is not None:
            _refuse_if_alive(search, other)
        attempt += 1
    return attempt


def _claim_path(search: Search, attempt: int) -> str:
    return storage.join(search.folder, "attempts", f"{attempt}.json")
