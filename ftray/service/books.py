"""What the database knows of the files in the storage root, for whoever would delete some."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ftray.accounts.database import Database, open_database
from ftray.accounts.url import checked_url, database_url
from ftray.garbage.policy import Known
from ftray.service import blobs
from ftray.service.files import FILES_LOCK
from ftray.service.jobs import ENDED
from ftray.service.leases import lock
from ftray.service.tables import FileRow, JobRow


@dataclass(frozen=True)
class Books:
    """A service's database, beside the storage root that its files lie in."""

    database: Database
    root: str

    def known(self) -> Known:
        """Return the names of all bytes and jobs that it ever heard of, and of those in need."""
        with self.database.reading() as session:
            everything = _names(session, sa.true(), sa.true())
            return Known(everything, _names(session, _IS_LIVE, _IS_OPEN))

    def drop(self, name: str) -> bool:
        """Delete a file's bytes, unless a file or a job needs them."""
        with self.database.reading() as session:
            if _is_needed(session, name):
                return False
        with self.database.writing() as session:
            lock(self.database, session, FILES_LOCK)  # nobody adds a file with these bytes now
            if _is_needed(session, name):
                return False
            blobs.drop(self.root, name)
        return True


@contextmanager
def opened(root: str) -> Iterator[Books | None]:
    """Open the books of a storage root for a block's time; None: there is no database."""
    url = database_url(root)
    checked = checked_url(url)
    if checked.get_backend_name() == "sqlite" and not Path(checked.database or "").exists():
        yield None
        return
    database = open_database(url)
    try:
        yield Books(database, root)
    finally:
        database.close()


_IS_LIVE = FileRow.deleted.is_(None)
_IS_OPEN = JobRow.status.not_in(ENDED)


def _names(
    session: Session, files: sa.ColumnElement[bool], jobs: sa.ColumnElement[bool]
) -> frozenset[str]:
    of_jobs = [
        sa.select(column).where(jobs, column.is_not(None))
        for column in (JobRow.id, JobRow.training_blob, JobRow.validation_blob)
    ]
    return frozenset(session.scalars(sa.union(sa.select(FileRow.blob).where(files), *of_jobs)))


def _is_needed(session: Session, blob: str) -> bool:
    file = sa.select(FileRow.id).where(FileRow.blob == blob, _IS_LIVE)
    is_its_data = sa.or_(JobRow.training_blob == blob, JobRow.validation_blob == blob)
    job = sa.select(JobRow.id).where(is_its_data, _IS_OPEN)
    return session.scalar(sa.select(sa.or_(file.exists(), job.exists()))) is True
