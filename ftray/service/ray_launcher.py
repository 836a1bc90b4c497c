"""The launcher of a Ray cluster: each process is a Ray job, known to the cluster by its id."""

from collections.abc import Collection, Mapping, Sequence

from ftray import jobs
from ftray.jobs import SERVING, JobSpec
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
        """Sum up the machines, less what serving and other jobs hold of them."""
        machines = jobs.capacities(self._address)
        held = [one for one in jobs.holdings(self._address) if one.submission not in ours]
        serving = [one for one in held if one.by == SERVING]
        cpus, gpus = sum(one.cpus for one in machines), sum(one.gpus for one in machines)
        return Room(
            cpus - sum(one.cpus for one in held),
            gpus - sum(one.gpus for one in held),
            cpus - sum(one.cpus for one in serving),
            gpus - sum(one.gpus for one in serving),
        )
