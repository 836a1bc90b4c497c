"""How many bytes a project keeps: its files, and what its jobs' runs and models take.

Files are counted by their rows. Of a job the controller measures the folders, once a minute while
it works and once after each change; requests read the number that it left.
"""

import logging
import time

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ftray import searches, storage
from ftray.accounts.database import Database
from ftray.accounts.grant import GIB, Quota
from ftray.accounts.projects import quota_of
from ftray.errors import StorageError
from ftray.service.refusals import out_of_quota
from ftray.service.tables import FileRow, JobRow

logger = logging.getLogger(__name__)

_SECONDS = 60.0
_MOST = 100  # jobs in one round


def stored(session: Session, project: str) -> int:
    """Return the bytes that a project keeps, as far as they are known."""
    files = sa.select(sa.func.coalesce(sa.func.sum(FileRow.bytes), 0))
    jobs = sa.select(sa.func.coalesce(sa.func.sum(JobRow.stored_bytes), 0))
    of_files = session.scalar(files.where(FileRow.project == project, FileRow.deleted.is_(None)))
    of_jobs = session.scalar(jobs.where(JobRow.project == project))
    return int(of_files or 0) + int(of_jobs or 0)


def check_storage(session: Session, project: str, quota: Quota, more: int) -> None:
    """Raise ApiError where a project may not keep so many bytes more."""
    most = quota.storage_bytes
    if most is not None and stored(session, project) + more > most:
        words = "files, runs and models; delete some files or models"
        raise out_of_quota(f"{most / GIB:.2f} GiB of {words}")


def is_full(session: Session, project: str) -> bool:
    """Whether a project keeps all that it may: no job of it starts."""
    most = quota_of(session, project).storage_bytes
    return most is not None and stored(session, project) >= most


def forget_size(session: Session, model: str) -> None:
    """Let the job that a model came from be measured again; `model` is an adapter's name."""
    job = JobRow.short == model.removeprefix("ft-")
    session.execute(sa.update(JobRow).where(job).values(stored_bytes=None))


class Meter:
    """Measures what jobs take; run by the controller."""

    def __init__(self, database: Database, root: str) -> None:
        self._database = database
        self._root = root
        self._next = float("-inf")

    def round(self) -> None:
        """Measure the jobs that nobody has measured since they changed, and those at work."""
        chosen = sa.and_(JobRow.stored_bytes.is_(None), JobRow.submission.is_(None))
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _SECONDS
            chosen = sa.or_(chosen, JobRow.submission.is_not(None))
        query = sa.select(JobRow.id, JobRow.short).where(chosen).limit(_MOST)
        with self._database.reading() as session:
            found = session.execute(query).all()
        for id, short in found:
            try:
                size = _size(self._root, f"ft-{short}")
            except StorageError as error:  # the next round looks again
                logger.warning("job %s is not measured: %s", id, error.message)
                continue
            with self._database.writing() as session:
                job = sa.update(JobRow).where(JobRow.id == id)
                session.execute(job.values(stored_bytes=size))


def _size(root: str, name: str) -> int:
    """Return the bytes of a run or a search, of the runs that are its trials, and its models."""
    folders = [storage.join(root, top, name) for top in ("runs", "searches", "adapters")]
    if storage.names(folders[1]):
        runs = storage.join(root, "runs")
        trials = [run for run in storage.names(runs) if searches.search_of(run) == name]
        folders += [storage.join(runs, trial) for trial in trials]
    return sum(held.size for folder in folders for held in storage.contents(folder))
