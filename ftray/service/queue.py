"""Which job is next: projects take turns, and none gets more than its share. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from ftray.accounts.grant import Quota


@dataclass(frozen=True)
class Waiting:
    """A job in the queue."""

    id: str
    project: str
    priority: int
    created: float
    gpus: float
    not_before: float


@dataclass(frozen=True)
class Busy:
    """A job that is being worked on."""

    project: str
    gpus: float


@dataclass(frozen=True)
class Shares:
    """What projects may have, where it is not the default, and whose storage is used up."""

    quotas: Mapping[str, Quota]
    full: Set[str] = frozenset()


def next_job(
    waiting: Sequence[Waiting],
    busy: Sequence[Busy],
    shares: Shares,
    last_started: Mapping[str, float],
    now: float,
) -> str | None:
    """Return the id of the job that starts now, None if there is none.

    The project with the fewest running jobs is served first, and of those the one that has waited
    longest since its last start. Within a project priority decides, then age; a job that needs more
    GPUs than are left of the share holds up the project's later ones, lest it never start.
    """
    heads = [_head(jobs, now) for jobs in _by_project(waiting).values()]
    ready = [job for job in heads if job is not None and _has_room(job, busy, shares)]

    running = Counter(one.project for one in busy)
    first = min(
        ready,
        key=lambda job: (running[job.project], last_started.get(job.project, 0.0), job.created),
        default=None,
    )
    return None if first is None else first.id


def _by_project(waiting: Sequence[Waiting]) -> dict[str, list[Waiting]]:
    found: dict[str, list[Waiting]] = {}
    for job in waiting:
        found.setdefault(job.project, []).append(job)
    return found


def _head(jobs: Sequence[Waiting], now: float) -> Waiting | None:
    ready = [job for job in jobs if job.not_before <= now]
    return min(ready, key=lambda job: (-job.priority, job.created, job.id), default=None)


def _has_room(job: Waiting, busy: Sequence[Busy], shares: Shares) -> bool:
    if job.project in shares.full:
        return False
    quota = shares.quotas.get(job.project, Quota())
    mine = [one for one in busy if one.project == job.project]
    has_slot = quota.running_jobs is None or len(mine) < quota.running_jobs
    gpus = sum(one.gpus for one in mine) + job.gpus
    return has_slot and (quota.gpus is None or gpus <= quota.gpus)
