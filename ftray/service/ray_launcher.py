"""The launcher of a Ray cluster: each process is a Ray job, known to the cluster by its id."""

from collections.abc import Collection, Mapping, Sequence

from ftray import jobs
from ftray.jobs import JobSpec
from ftray.machines import freed, nodes_at
from ftray.service.launcher import Room, Seen


class RayLauncher:
    """Speaks to the dashboard of the cluster; drivers run on its head node."""

    def __init__(self, address: str) -> None:
        self._address = address

    def submit(self, id: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Start a Ray job; the cluster takes an id only once."""
        jobs.submit(self._address, JobSpec(id, tuple(command), env=env))

    def find(self, id: str) -> Seen | None:
        """Ask the cluster; one that was started anew knows nothing of jobs before."""
        found = jobs.find(self._address, id)
        if found is None:
            return None
        return Seen(found.state == "running", found.is_over, found.exit_code)

    def stop(self, id: str) -> None:
        """Send SIGTERM."""
        jobs.stop(self._address, id)

    def room(self, ours: Collection[str]) -> Room:
        """Sum up the machines: what is free of them and what ours hold, and all but serving's."""
        machines = nodes_at(self._address)
        own = [held for node in machines for held in node.held if held.submission in ours]
        most = freed(machines)
        return Room(
            sum(node.cpus for node in machines) + sum(held.cpus for held in own),
            sum(node.gpus for node in machines) + sum(held.gpus for held in own),
            sum(node.cpus for node in most),
            sum(node.gpus for node in most),
        )
