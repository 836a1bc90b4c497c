"""The folder of a run: its config, its status, its metrics, and which checkpoints exist."""

import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, Literal

import yaml

from ftray import storage
from ftray.config.base import validated
from ftray.config.changes import changes
from ftray.config.run import RunConfig
from ftray.errors import ConfigError, did_you_mean
from ftray.owner import Owner, this_process
from ftray.records import Record, RecordError, check_name, encode, read_record

logger = logging.getLogger(__name__)

LOST_AFTER_SECONDS = 60.0

State = Literal["queued", "running", "succeeded", "failed", "cancelled", "paused", "lost"]
Metrics = dict[str, Any]  # one line of metrics.jsonl: numbers and nulls


@dataclass(frozen=True)
class Run:
    """A run's place below a storage root; ConfigError when the name could lead out of it."""

    root: str
    name: str

    def __post_init__(self) -> None:
        try:
            check_name(self.name, "run name")
        except ValueError as error:
            raise ConfigError(str(error)) from None

    @property
    def folder(self) -> str:
        """The run's folder."""
        return storage.join(self.root, "runs", self.name)


@dataclass(frozen=True, kw_only=True)
class Status(Record):
    """How far a run is. Change one with `dataclasses.replace`, so that the owner stays."""

    state: State = "queued"
    step: int = 0
    total_steps: int | None = None
    attempts: int = 1
    heartbeat: float = 0.0  # unix seconds
    error: str | None = None
    note: str | None = None  # why its workers were last started again
    adapter: str | None = None
    owner: Owner | None = None


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord(Record):
    """What one published checkpoint is, and the digests that its files must have."""

    step: int
    attempt: int
    world_size: int
    threads: int
    micro_batch_size: int | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    best: bool = False
    files: dict[str, str] = field(default_factory=dict)
    time: float = field(default_factory=time.time)


def open_run(root: str, config: RunConfig, *, overwrite: bool = False) -> Run:
    """Claim a run for this process: a new one, or the next attempt at one that did not finish.

    Raises ConfigError when the name is taken: by a run that has finished, that has taken steps with
    another config, or that another process is running.
    """
    run = Run(root, config.name)
    status = _stored_status(run)
    if status is not None:
        _refuse_if_alive(run, status)
        if overwrite:
            delete_run(root, config.name)
            status = None
        else:
            _refuse_if_finished(run, status)
            _refuse_if_changed(run, config)
    attempt = _claim(run, after=status.attempts if status else 0)
    storage.write(storage.join(run.folder, "run.yaml"), _as_yaml(config))
    fresh = status or Status()
    write_status(
        run, replace(fresh, state="queued", attempts=attempt, error=None, owner=this_process())
    )
    return run


def keep_data(run: Run, digests: Mapping[str, str | None]) -> None:
    """Remember which token sets a run is trained on, by the keys that name its data.

    Raises ConfigError when it has begun with others: it would go on with other rows.
    """
    known = read_data(run) or {}
    changed = [key for key, digest in digests.items() if known.get(key) != digest]
    if known and changed and read_metrics(run):
        raise ConfigError(
            f"{' and '.join(changed)} changed since run '{run.name}' began",
            "restore the data, choose a new name, or start it anew with --overwrite",
        )
    storage.write(_data_path(run), json.dumps(dict(digests)).encode())


def read_data(run: Run) -> dict[str, str | None] | None:
    """Return what `keep_data` remembers, None before it."""
    data = storage.read_if_exists(_data_path(run))
    return None if data is None else dict(json.loads(data))


def next_attempt(run: Run) -> int:
    """Take the next attempt's number for the driver's own restart of its workers."""
    attempt = _claim(run, after=read_status(run).attempts)
    change_status(run, lambda status: replace(status, attempts=attempt))
    return attempt


def read_status(run: Run) -> Status:
    """Return the status; its state is `lost` when whoever should be working has gone silent."""
    status = _stored_status(run)
    if status is None:
        raise _unknown(run)
    working = status.state in ("queued", "running")
    return replace(status, state="lost") if working and not _is_alive(status) else status


def write_status(run: Run, status: Status) -> None:
    """Replace the status. Each write is a sign of life: it sets the heartbeat."""
    storage.write(_status_path(run), encode(replace(status, heartbeat=time.time())))


def change_status(run: Run, change: Callable[[Status], Status]) -> None:
    """Replace the status by what `change` makes of it; threads of the driver lose no update."""
    with _CHANGING:
        status = _stored_status(run)
        if status is None:
            raise _unknown(run)
        write_status(run, change(status))


_CHANGING = Lock()


def read_config(run: Run) -> RunConfig:
    """Return the config that the run was opened with."""
    path = storage.join(run.folder, "run.yaml")
    tree = yaml.safe_load(storage.read(path))
    return validated(RunConfig, tree, source=path)


def read_metrics(run: Run) -> list[Metrics]:
    """Return the lines of metrics.jsonl; a line that a crash has torn is left out."""
    data = storage.read_if_exists(storage.join(run.folder, "metrics.jsonl")) or b""
    lines = [parsed(line) for line in data.splitlines()]
    return [line for line in lines if line is not None]


def parsed(line: bytes | str) -> Metrics | None:
    """Return a line of metrics.jsonl, None when it is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def list_runs(root: str) -> dict[str, Status]:
    """Return the status of every run by its name."""
    found = {}
    for name in storage.names(storage.join(root, "runs")):
        try:
            found[name] = read_status(Run(root, name))
        except (ConfigError, RecordError):
            logger.debug("%s/runs/%s is no run", root, name)  # a foreign or half-written folder
    return found


def delete_run(root: str, name: str, *, force: bool = False) -> None:
    """Delete a run with its checkpoints; published adapters stay. One that is alive needs force."""
    run = Run(root, name)
    if not storage.exists(_status_path(run)):
        raise _unknown(run)
    status = None if force else _stored_status(run)
    if status is not None:
        _refuse_if_alive(run, status)
    for checkpoint in storage.names(_checkpoints(run)):
        storage.delete(storage.join(_checkpoints(run), checkpoint))
    storage.delete(run.folder, keep="status.json")  # until the end it is a run that can be deleted
    storage.delete(run.folder)


def checkpoint_folder(run: Run, step: int, attempt: int) -> str:
    """Return where an attempt puts its checkpoint of a step; attempts never share a folder."""
    return storage.join(_checkpoints(run), f"step-{step:06d}-a{attempt}")


def checkpoints(run: Run) -> list[CheckpointRecord]:
    """Return the published checkpoints, the furthest step first."""
    records = [_checkpoint(run, step, attempt) for step, attempt in _checkpoint_places(run)]
    return [record for record in records if record is not None]


def write_checkpoint_record(run: Run, record: CheckpointRecord) -> bool:
    """Publish a checkpoint whose files are in place; False when it had been published already."""
    folder = checkpoint_folder(run, record.step, record.attempt)
    return storage.create(storage.join(folder, storage.RECORD), encode(record))


def verify(run: Run, record: CheckpointRecord) -> list[str]:
    """Return what is wrong with a checkpoint's files, in words; nothing when it can be loaded."""
    return storage.verify(checkpoint_folder(run, record.step, record.attempt), record.files)


def delete_checkpoint(run: Run, record: CheckpointRecord) -> None:
    """Delete a checkpoint, its record first."""
    storage.delete(checkpoint_folder(run, record.step, record.attempt))


def prune(run: Run, keep: int) -> list[CheckpointRecord]:
    """Keep the `keep` newest checkpoints and the latest that was best; return the deleted ones."""
    published = checkpoints(run)
    best = [record for record in published if record.best][:1]
    surplus = [record for record in published[keep:] if record not in best]
    for record in surplus:
        delete_checkpoint(run, record)
    return surplus


def delete_unpublished(run: Run, *, before: int) -> int:
    """Delete checkpoints of attempts earlier than `before` that have no record, or a damaged one.

    Returns how many had a damaged one, which is a loss.
    """
    lost = 0
    for step, attempt in _checkpoint_places(run):
        if attempt < before and _checkpoint(run, step, attempt) is None:
            folder = checkpoint_folder(run, step, attempt)
            lost += storage.exists(storage.join(folder, storage.RECORD))
            storage.delete(folder)
    return lost


def _status_path(run: Run) -> str:
    return storage.join(run.folder, "status.json")


def _data_path(run: Run) -> str:
    return storage.join(run.folder, "data.json")


def _stored_status(run: Run) -> Status | None:
    return read_record(_status_path(run), Status)


def _unknown(run: Run) -> ConfigError:
    known = storage.names(storage.join(run.root, "runs"))
    hint = did_you_mean(run.name, known, otherwise="ftray runs list")
    return ConfigError(f"no run '{run.name}' in {run.root}", hint)


def _is_alive(status: Status) -> bool:
    """Say whether the driver works still: by its process on this host, else by the heartbeat."""
    if status.state not in ("queued", "running"):
        return False
    if status.owner is not None and status.owner.is_dead:
        return False
    return time.time() - status.heartbeat <= LOST_AFTER_SECONDS


def _refuse_if_alive(run: Run, status: Status) -> None:
    owner = status.owner
    if not _is_alive(status) or (owner is not None and owner.is_me):
        return
    where = f" ({owner})" if owner is not None else ""
    age = time.time() - status.heartbeat
    raise ConfigError(
        f"run '{run.name}' is {status.state} in another process{where}, "
        f"last heard of {age:.0f} s ago",
        f"ftray runs show {run.name}; stop that process, or choose a new name",
    )


def _refuse_if_finished(run: Run, status: Status) -> None:
    if status.state == "succeeded":
        result = f" and has published {status.adapter}" if status.adapter else ""
        raise ConfigError(
            f"run '{run.name}' has already succeeded{result}",
            "choose a new name, or start it anew with --overwrite",
        )


def _refuse_if_changed(run: Run, config: RunConfig) -> None:
    changed = changes(read_config(run), config)
    if changed and read_metrics(run):  # without a step a mistake was put right: nothing to mix up
        raise ConfigError(
            "\n  ".join([f"run '{run.name}' has begun with another config:", *changed]),
            "choose a new name, or start it anew with --overwrite",
        )


def _claim(run: Run, *, after: int) -> int:
    """Take the next attempt's number; of two processes that ask at once one is refused."""
    attempt = after + 1
    mine = Status(attempts=attempt, heartbeat=time.time(), owner=this_process())
    while not storage.create(_claim_path(run, attempt), encode(mine)):
        other = read_record(_claim_path(run, attempt), Status)
        if other is not None:
            _refuse_if_alive(run, other)
        attempt += 1
    return attempt


def _claim_path(run: Run, attempt: int) -> str:
    return storage.join(run.folder, "attempts", f"{attempt}.json")


def _as_yaml(config: RunConfig) -> bytes:
    tree = config.model_dump(mode="json")
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode()


def _checkpoints(run: Run) -> str:
    return storage.join(run.folder, "checkpoints")


def _checkpoint_places(run: Run) -> list[tuple[int, int]]:
    found = [_PLACE.fullmatch(name) for name in storage.names(_checkpoints(run))]
    places = [(int(match[1]), int(match[2])) for match in found if match]
    return sorted(places, reverse=True)


_PLACE = re.compile(r"step-(\d{6,})-a(\d+)")


def _checkpoint(run: Run, step: int, attempt: int) -> CheckpointRecord | None:
    path = storage.join(checkpoint_folder(run, step, attempt), storage.RECORD)
    try:
        return read_record(path, CheckpointRecord)
    except RecordError:
        logger.warning("checkpoint of step %d is damaged: %s is not a record", step, path)
        return None
