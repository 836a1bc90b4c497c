"""What starts the processes that work on jobs, and knows what became of them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Seen:
    """A process as the launcher knows it; `exit_code` is known once it has ended by itself."""

    is_running: bool
    has_ended: bool = False
    exit_code: int | None = None


@dataclass(frozen=True)
class Room:
    """What a cluster has for commands: beside what others use now, and beside serving alone."""

    cpus: float
    gpus: float
    most_cpus: float
    most_gpus: float


class Launcher(Protocol):
    """Starts commands by id, each at most once. What fails raises ClusterError."""

    def submit(self, id: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Start a command; one whose id is known is left as it is."""
        ...

    def find(self, id: str) -> Seen | None:
        """Return what is known of a command, None if nothing is."""
        ...

    def stop(self, id: str) -> None:
        """Ask a command to end, which saves first; returns before it has. Asking again is fine."""
        ...

    def room(self, ours: Collection[str]) -> Room:
        """Return what there is for commands, counting what those of these ids use."""
        ...
