"""Which job is next: projects take turns, and none gets more than its share. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from ftray.accounts.grant import Quota
from ftray.config.cluster import READ_CPUS
from ftray.service.launcher import Room


@dataclass(frozen=True)
class Waiting:
    """A job in the queue, and what its workers need."""

    id: str
    project: str
    priority: int
    created: float
    cpus: float
    gpus: float
    not_before: float


@dataclass(frozen=True)
class Busy:
    """A job that is being worked on, and what its workers hold or are about to."""

    project: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Shares:
    """What projects may have, where it is not the default, and whose storage is used up."""

    quotas: Mapping[str, Quota]
    full: Set[str] = frozenset()


@dataclass(frozen=True)
class Queue:
    """All that decides who is next."""

    waiting: Sequence[Waiting]
    busy: Sequence[Busy]
    shares: Shares
    room: Room

    def next(self, last_started: Mapping[str, float], now: float) -> str | None:
        """Return the id of the job that starts now, None if there is none.

        The project with the fewest running jobs is served first, and of those the one that has
        waited longest since its last start. Within a project priority decides, then age; a job that
        needs more than is left of the project's share or of the cluster holds up the project's
        later ones, lest it never start. One that the cluster can never hold starts: its driver
        tells what is missing.
        """
        ready = [job for job in self._heads(now) if self._has_room(job)]
        running = Counter(one.project for one in self.busy)
        first = min(
            ready,
            key=lambda job: (running[job.project], last_started.get(job.project, 0.0), job.created),
            default=None,
        )
        return None if first is None else first.id

    def crowded_out(self, now: float) -> list[str]:
        """Return the ids of those that are next in their projects, but not on this cluster."""
        return [job.id for job in self._heads(now) if not self._has_room(job)]

    def _heads(self, now: float) -> list[Waiting]:
        """Return each project's first job, if its share has room for it."""
        by_project: dict[str, list[Waiting]] = {}
        for job in self.waiting:
            if job.not_before <= now:
                by_project.setdefault(job.project, []).append(job)
        heads = [
            min(jobs, key=lambda job: (-job.priority, job.created, job.id))
            for jobs in by_project.values()
        ]
        return [job for job in heads if self._is_in_share(job)]

    def _is_in_share(self, job: Waiting) -> bool:
        if job.project in self.shares.full:
            return False
        quota = self.shares.quotas.get(job.project, Quota())
        mine = [one for one in self.busy if one.project == job.project]
        has_slot = quota.running_jobs is None or len(mine) < quota.running_jobs
        gpus = sum(one.gpus for one in mine) + job.gpus
        return has_slot and (quota.gpus is None or gpus <= quota.gpus)

    def _has_room(self, job: Waiting) -> bool:
        cpus, room = job.cpus + READ_CPUS, self.room
        if cpus > room.most_cpus or job.gpus > room.most_gpus:
            return True
        has_cpus = sum(one.cpus for one in self.busy) + cpus <= room.cpus
        return has_cpus and sum(one.gpus for one in self.busy) + job.gpus <= room.gpus
