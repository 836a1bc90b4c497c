"""What a driver is told, and what it answers: files in the storage root, below `jobs/<id>/`."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import yaml

from ftray import storage
from ftray.config.base import validated
from ftray.config.run import RunConfig
from ftray.config.search import SearchConfig, check_search


@dataclass(frozen=True)
class Order:
    """A run, or a search over it."""

    run: RunConfig
    search: SearchConfig | None


@dataclass(frozen=True)
class Answer:
    """How a driver ended."""

    exit_code: int
    message: str
    is_occupied: bool = False  # whether others used what it needs of the cluster


def command(cluster: str, root: str, job: str, submission: str) -> list[str]:
    """Return the command line; the head node has the same Python in the same place.

    It names the cluster: Ray Jobs (2.60) point a job at the Ray that was last started on a machine.
    """
    return [sys.executable, "-m", "ftray.service.driver", cluster, root, job, submission]


def write_order(root: str, job: str, run: Mapping[str, object], space: object) -> None:
    """Say what is to be run."""
    storage.write(_path(root, job, "run.yaml"), _as_yaml(run))
    if space is not None:
        storage.write(_path(root, job, "space.yaml"), _as_yaml(space))


def read_order(root: str, job: str) -> Order:
    """Return what is to be run."""
    path = _path(root, job, "run.yaml")
    run = validated(RunConfig, yaml.safe_load(storage.read(path)), source=path)
    space = storage.read_if_exists(_path(root, job, "space.yaml"))
    if space is None:
        return Order(run, None)
    return Order(run, check_search(yaml.safe_load(space), run, "space.yaml"))


def write_end(root: str, job: str, submission: str, answer: Answer) -> None:
    """Say how a driver ended: launchers forget exit codes, and know no messages."""
    storage.write(_path(root, job, f"{submission}.json"), json.dumps(asdict(answer)).encode())


def read_end(root: str, job: str, submission: str) -> Answer | None:
    """Return how a driver ended, None if it could not say so any more."""
    data = storage.read_if_exists(_path(root, job, f"{submission}.json"))
    if data is None:
        return None
    return Answer(**json.loads(data))


def forget(root: str, job: str) -> None:
    """Delete all of it."""
    storage.delete(storage.join(root, "jobs", job))


def _path(root: str, job: str, name: str) -> str:
    return storage.join(root, "jobs", job, name)


def _as_yaml(tree: object) -> bytes:
    plain = json.loads(json.dumps(tree))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).encode()
