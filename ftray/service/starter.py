"""Takes jobs from the queue: in fair order, as many as may be at work and the cluster holds."""

import time
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ftray.accounts.database import Database
from ftray.accounts.projects import quotas
from ftray.service.events import News, tell
from ftray.service.launcher import Launcher, Room
from ftray.service.leases import Lease
from ftray.service.queue import Busy, Queue, Shares, Waiting
from ftray.service.shares import is_full
from ftray.service.tables import JobRow

_ROOM_SECONDS = 5.0  # so old may what is known of others' use be; that of jobs is counted here


class Starter:
    """Gives jobs a submission; whoever looks at them next starts their process."""

    def __init__(self, database: Database, launcher: Launcher, lease: Lease, most: int) -> None:
        self._database = database
        self._launcher = launcher
        self._lease = lease
        self._most = most  # jobs at once
        self._room: Room | None = None
        self._looked = float("-inf")
        self._told: set[str] = set()  # the jobs that have heard why they wait

    def round(self) -> None:
        """Start what may start; LostLeaseError if this is no longer the controller."""
        with self._database.reading() as session:
            ready = sa.select(JobRow.id).where(*_IN_QUEUE, JobRow.not_before <= time.time())
            if session.scalar(ready.limit(1)) is None:
                return
            at_work = [id for id in session.scalars(_AT_WORK) if id]
        if len(at_work) < self._most:
            room = self._look(at_work)
            while self._start_next(room):
                pass

    def _look(self, at_work: Sequence[str]) -> Room:
        """Ask what there is for jobs; never within a transaction."""
        if self._room is None or time.monotonic() - self._looked > _ROOM_SECONDS:
            self._room = self._launcher.room(at_work)
            self._looked = time.monotonic()
        return self._room

    def _start_next(self, room: Room) -> bool:
        with self._database.writing() as session:
            self._lease.check(session)
            busy = [Busy(*row) for row in session.execute(_BUSY)]
            if len(busy) >= self._most:
                return False
            waiting = [Waiting(*row) for row in session.execute(_QUEUE)]
            started = {project: last or 0.0 for project, last in session.execute(_LAST_STARTED)}
            full = {name for name in {job.project for job in waiting} if is_full(session, name)}
            queue = Queue(waiting, busy, Shares(quotas(session), full), room)
            chosen = queue.next(started, time.time())
            if chosen is None:
                self._tell(session, queue.crowded_out(time.time()))
                return False
            row = session.get_one(JobRow, chosen, with_for_update=True)
            if row.status != "queued" or row.submission is not None:
                return True  # somebody has just paused or cancelled it
            row.attempt += 1
            row.submission, row.is_launched = f"{row.id}-{row.attempt}", False
            row.started = time.time()
            self._told.discard(row.id)
        return True

    def _tell(self, session: Session, ids: Sequence[str]) -> None:
        for id in ids:
            if id not in self._told:
                self._told.add(id)
                row = session.get_one(JobRow, id, with_for_update=True)
                tell(session, row, News("Job waits until the cluster has room for it"))


_IN_QUEUE = JobRow.status == "queued", JobRow.submission.is_(None)
_QUEUE = sa.select(
    *(JobRow.id, JobRow.project, JobRow.priority, JobRow.created),
    *(JobRow.cpus, JobRow.gpus, JobRow.not_before),
).where(*_IN_QUEUE)
_AT_WORK = sa.select(JobRow.submission).where(JobRow.submission.is_not(None))
_BUSY = sa.select(JobRow.project, JobRow.cpus, JobRow.gpus).where(JobRow.submission.is_not(None))
_LAST_STARTED = (
    sa.select(JobRow.project, sa.func.max(JobRow.started))
    .where(JobRow.started.is_not(None))
    .group_by(JobRow.project)
)
