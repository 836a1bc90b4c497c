"""What goes with time: expired files, bytes that nobody names any more, folders of old runs."""

import logging
import time
from collections.abc import Sequence

import sqlalchemy as sa

from ftray import runs, storage
from ftray.accounts.database import Database
from ftray.config.serve import JobsConfig
from ftray.errors import ConfigError
from ftray.runs import Run
from ftray.service import blobs
from ftray.service.books import Books
from ftray.service.jobs import ENDED
from ftray.service.order import forget
from ftray.service.tables import FileRow, JobRow

logger = logging.getLogger(__name__)

_DAY = 86400.0
_UPLOAD_SECONDS = 3600.0  # in which an upload has been stored, or never will be


class Retention:
    """Run by the controller."""

    def __init__(self, database: Database, root: str, config: JobsConfig) -> None:
        self._database = database
        self._root = root
        self._config = config
        self._books = Books(database, root)

    def sweep(self) -> None:
        """Delete what is due."""
        self._expire_files()
        for blob in blobs.kept(self._root):
            if self._books.drop(blob):
                logger.info("deleted files/%s: no file and no job needs it", blob)
        for job in self._old_jobs():
            self._delete_run(job)

    def _expire_files(self) -> None:
        now = time.time()
        is_cut_off = sa.and_(~FileRow.is_stored, FileRow.created < now - _UPLOAD_SECONDS)
        due = sa.and_(FileRow.deleted.is_(None), sa.or_(FileRow.expires < now, is_cut_off))
        with self._database.writing() as session:
            session.execute(sa.update(FileRow).where(due).values(deleted=now))

    def _old_jobs(self) -> Sequence[JobRow]:
        before = time.time() - self._config.keep_runs_days * _DAY
        query = sa.select(JobRow).where(
            JobRow.status.in_(ENDED), ~JobRow.is_swept, JobRow.finished < before
        )
        with self._database.reading() as session:
            return session.scalars(query.limit(100)).all()

    def _delete_run(self, job: JobRow) -> None:
        name = f"ft-{job.short}"
        try:
            runs.delete_run(self._root, name)
        except ConfigError:  # it never began, or was a search
            storage.delete(storage.join(self._root, "searches", Run(self._root, name).name))
        forget(self._root, job.id)
        with self._database.writing() as session:
            row = session.get_one(JobRow, job.id)
            row.is_swept, row.stored_bytes = True, None
