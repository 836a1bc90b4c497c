"""The record of what `ftray up` has started, and where it is kept."""

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from ftray import storage
from ftray.errors import ClusterError
from ftray.records import Record, encode, read_record


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process, told from later ones with its number by when it began."""

    pid: int
    created: float

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        try:
            has_ended = psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False
        return not has_ended and self.keeps_pid

    @property
    def keeps_pid(self) -> bool:
        """Whether its number is still its own: it runs, or has ended and nobody asked how."""
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.created) < 1.0)
        except psutil.Error:
            return False


@dataclass(frozen=True, kw_only=True)
class Standing(Record):
    """What runs where; `mark` is in the environment of every process that belongs to it."""

    mark: str
    started: float
    session: str  # Ray's files, of which no other Ray has any
    address: str
    jobs: str
    token_file: str
    url: str
    model: str
    storage: str
    cpus: int
    head: Process | None = None  # None: it was just about to be started
    is_ready: bool = False


def folder() -> Path:
    """Where the record is: one a user, or one a FTRAY_HOME."""
    home = os.environ.get("FTRAY_HOME", "")
    return Path("~/.ftray" if not home or storage.is_uri(home) else home).expanduser() / "up"


def cluster_file() -> Path:
    """Return the cluster file of what is up; raises ClusterError if nothing is."""
    if read() is None:
        raise ClusterError(
            "nothing is up on this machine",
            "ftray up, or name a cluster: --cluster cluster/remote.yaml",
        )
    return folder().absolute() / "cluster.yaml"


def read() -> Standing | None:
    """Return what is recorded, whether or not it still runs."""
    return read_record(_path(), Standing)


def write(standing: Standing) -> None:
    """Record it, and the cluster file with which other commands find it."""
    folder().mkdir(parents=True, exist_ok=True)
    text = (
        f"# what ftray up has started\naddress: {standing.address}\njobs: {standing.jobs}\n"
        "token_file: token\nshared_files: true\n"
    )
    storage.write(str(folder() / "cluster.yaml"), text.encode())
    storage.write(_path(), encode(standing))


def forget() -> None:
    """Delete the record, and what goes with it; the log stays."""
    for name in ("cluster.yaml", "token", "record.json"):
        (folder() / name).unlink(missing_ok=True)


def _path() -> str:
    return str(folder() / "record.json")
