"""Files of projects: rows that name blobs. A blob goes when neither a file nor a job needs it."""

import secrets
import string
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ftray.accounts.audit import Actor, note
from ftray.accounts.database import Database
from ftray.accounts.projects import quota_of
from ftray.config.serve import FilesConfig
from ftray.serve.openai.errors import INVALID, ApiError
from ftray.service import blobs
from ftray.service.blobs import Measured
from ftray.service.leases import lock
from ftray.service.pages import Page, Query, turn
from ftray.service.refusals import no_file, out_of_quota
from ftray.service.shares import check_storage
from ftray.service.tables import FileRow
from ftray.service.uploads import PURPOSE, Upload

RESULTS = "fine-tune-results"
_LETTERS = string.ascii_letters + string.digits
FILES_LOCK = "files"  # of who adds a file, or drops bytes


def new_id(kind: str, letters: str = _LETTERS) -> str:
    """Draw an id such as `file-…`: 24 characters that nobody guesses."""
    return f"{kind}-{''.join(secrets.choice(letters) for _ in range(24))}"


@dataclass(frozen=True)
class Files:
    """The files of all projects. Its methods block: call them in a thread."""

    database: Database
    root: str
    config: FilesConfig

    def check_room(self, project: str) -> None:
        """Raise ApiError where no further file may come; asked before a body is read."""
        with self.database.reading() as session:
            _check_room(session, project, 0)

    def add(self, actor: Actor, upload: Upload) -> FileRow:
        """Keep an upload; raises ApiError where it is more than may be kept."""
        measured = blobs.measure(upload.file, "jsonl")
        if measured.rows > self.config.max_rows:
            raise ApiError(INVALID, f"a file has at most {self.config.max_rows:,} lines", "file")
        row = _new_row(actor.project, measured, upload.filename, PURPOSE)
        if upload.lives_seconds is not None:
            row.expires = row.created + upload.lives_seconds
        with self.database.writing() as session:
            lock(
                self.database, session, FILES_LOCK
            )  # of two at once, the second knows of the first
            _check_room(session, actor.project, measured.bytes)
            session.add(row)
            note(session, actor, "file.create", row.id)
        return self._stored(row, upload.file)

    def keep_result(self, id: str, project: str, data: bytes) -> FileRow:
        """Keep a job's results as a file of its project; the row is the caller's to write."""
        source = BytesIO(data)
        measured = blobs.measure(source, "csv")
        with TemporaryDirectory() as folder:
            blobs.keep(self.root, source, measured.blob, Path(folder))
        row = _new_row(project, measured, "step_metrics.csv", RESULTS)
        row.id, row.is_stored = id, True
        return row

    def find(self, project: str, id: str, param: str = "id") -> FileRow:
        """Return a project's file; raises ApiError."""
        with self.database.reading() as session:
            return live_file(session, project, id, param)

    def page(self, project: str, query: Query, purpose: str | None) -> Page[FileRow]:
        """Return a page of a project's files."""
        chosen = sa.and_(_is_live(), FileRow.purpose == purpose) if purpose else _is_live()
        with self.database.reading() as session:
            return turn(session, FileRow, project, query, chosen)

    def delete(self, actor: Actor, id: str) -> None:
        """Delete a file; jobs that were made with it keep its bytes. Raises ApiError."""
        with self.database.writing() as session:
            live_file(session, actor.project, id).deleted = time.time()
            note(session, actor, "file.delete", id)

    def _stored(self, row: FileRow, source: BinaryIO) -> FileRow:
        with TemporaryDirectory() as folder:
            blobs.keep(self.root, source, row.blob, Path(folder))
        with self.database.writing() as session:
            stored = session.get_one(FileRow, row.id)
            stored.is_stored = True
            return stored


def live_file(
    session: Session, project: str, id: str, param: str = "id", *, held: bool = False
) -> FileRow:
    """Return a project's file; raises ApiError. `held`: nobody deletes it before we are done."""
    query = sa.select(FileRow).where(FileRow.id == id, FileRow.project == project, _is_live())
    row = session.scalars(query.with_for_update() if held else query).one_or_none()
    if row is None:
        raise no_file(id, param)
    return row


def _is_live() -> sa.ColumnElement[bool]:
    expires = sa.or_(FileRow.expires.is_(None), FileRow.expires > time.time())
    return sa.and_(FileRow.is_stored, FileRow.deleted.is_(None), expires)


def _check_room(session: Session, project: str, more: int) -> None:
    quota = quota_of(session, project)
    mine = FileRow.project == project, FileRow.deleted.is_(None), FileRow.purpose == PURPOSE
    count = session.scalar(sa.select(sa.func.count()).where(*mine)) or 0
    if quota.files is not None and count >= quota.files:
        raise out_of_quota(f"{count} files; delete some")
    check_storage(session, project, quota, more)


def _new_row(project: str, measured: Measured, filename: str, purpose: str) -> FileRow:
    return FileRow(
        id=new_id("file"),
        project=project,
        created=time.time(),
        blob=measured.blob,
        bytes=measured.bytes,
        rows=measured.rows,
        filename=filename,
        purpose=purpose,
        is_stored=False,
    )
