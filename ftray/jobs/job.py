"""What a job is, and what becomes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

State = Literal["pending", "running", "succeeded", "failed", "stopped"]


@dataclass(frozen=True)
class JobSpec:
    """A command to run on a cluster, once."""

    id: str
    command: tuple[str, ...]
    """Its first word has to be found on the PATH of the cluster's machines."""
    working_dir: Path | None = None
    """A folder of this machine that is packed, sent and made the command's working directory."""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Anybody who may look at the cluster's dashboard reads it: no place for secrets."""
    cpus: float = 0.0
    """For the command itself, less than it starts; 0: it runs on the head node."""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class JobInfo:
    """A job as its cluster knows it."""

    id: str
    state: State
    message: str
    """Why it waits or failed; after a failure with the last lines of its log."""
    command: str
    exit_code: int | None
    """Of the command, once it ended by itself."""
    started: float | None
    """When it was submitted, in unix seconds."""
    ended: float | None
    metadata: Mapping[str, str]

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self.state not in ("pending", "running")
