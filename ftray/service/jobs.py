"""Jobs of projects: create, look at, cancel, pause, resume. The controller does the rest."""

import hashlib
import secrets
import string
import time
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ftray.accounts.audit import Actor, note
from ftray.accounts.database import Database
from ftray.accounts.projects import quota_of
from ftray.config.run import ModelConfig
from ftray.config.serve import JobsConfig
from ftray.serve.openai.errors import INVALID, ApiError
from ftray.service import blobs
from ftray.service.events import News, event_page, tell
from ftray.service.files import live_file, new_id
from ftray.service.leases import lock
from ftray.service.pages import Page, Query, cut, no_cursor, turn
from ftray.service.recipe import Basis, make_recipe
from ftray.service.refusals import WRONG_STATE, no_job, out_of_quota
from ftray.service.requests import JobRequest
from ftray.service.shares import check_storage
from ftray.service.tables import CheckpointRow, EventRow, FileRow, JobRow

ENDED = ("succeeded", "failed", "cancelled")
WAITING = ("queued", "paused")
_SHORT = string.ascii_lowercase + string.digits


@dataclass(frozen=True)
class Parent:
    """The model that a job starts from: the base, or a version of an adapter of it."""

    init_from: str | None


@dataclass(frozen=True)
class Jobs:
    """The jobs of all projects. Its methods block, and raise ApiError: call them in a thread."""

    database: Database
    root: str
    base: ModelConfig
    config: JobsConfig
    gpus_per_worker: float

    def create(
        self, actor: Actor, request: JobRequest, parent: Parent, idempotency_key: str | None
    ) -> JobRow:
        """Queue a job; the same idempotency key gives the job that there is already."""
        with self.database.writing() as session:
            lock(self.database, session, f"jobs {_digest(actor.project)}")
            if idempotency_key is not None:
                mine = JobRow.project == actor.project, JobRow.idempotency_key == idempotency_key
                if known := session.scalars(sa.select(JobRow).where(*mine)).one_or_none():
                    return known
            self._check_room(session, actor.project, request)
            row = self._new_row(session, actor, request, parent)
            row.idempotency_key = idempotency_key
            session.add(row)
            session.flush()
            tell(session, row, News(f"Created fine-tuning job: {row.id}"), News("Job is queued"))
            note(session, actor, "job.create", row.id)
            return row

    def find(self, project: str, id: str) -> JobRow:
        """Return a project's job."""
        with self.database.reading() as session:
            return _own(session, project, id)

    def page(self, project: str, query: Query, details: Mapping[str, str] | None) -> Page[JobRow]:
        """Return a page of the jobs with all of these metadata; None: of those without any."""
        chosen = [
            JobRow.details[key].as_string() == value for key, value in (details or {}).items()
        ]
        if details is None:
            chosen.append(sa.cast(JobRow.details, sa.String) == "{}")
        with self.database.reading() as session:
            return turn(session, JobRow, project, query, sa.and_(sa.true(), *chosen))

    def events(self, project: str, id: str, query: Query) -> Page[EventRow]:
        """Return a page of a job's events."""
        with self.database.reading() as session:
            return event_page(session, _own(session, project, id), query)

    def checkpoints(self, project: str, id: str, query: Query) -> Page[CheckpointRow]:
        """Return a page of a job's checkpoints, the furthest first."""
        with self.database.reading() as session:
            job = _own(session, project, id)
            rows = sa.select(CheckpointRow).where(CheckpointRow.job == job.id)
            if query.after is not None:
                known = session.scalars(rows).all()
                here = [row.step for row in known if checkpoint_id(row) == query.after]
                if not here:
                    raise no_cursor(query.after)
                rows = rows.where(CheckpointRow.step < here[0])
            ordered = rows.order_by(CheckpointRow.step.desc()).limit(query.limit + 1)
            return cut(session.scalars(ordered).all(), query)

    def cancel(self, actor: Actor, id: str) -> JobRow:
        """End a job for good: at once if nothing works on it, else as soon as that has stopped."""
        with self.database.writing() as session:
            row = _own(session, actor.project, id, held=True)
            if row.status in ENDED:
                raise _wrong_state(row, "cancelled")
            row.wanted = "cancel"
            if row.submission is None:
                row.status, row.finished = "cancelled", time.time()
            words = "Job was cancelled" if row.submission is None else "Job is being cancelled"
            tell(session, row, News(words))
            note(session, actor, "job.cancel", id)
            return row

    def pause(self, actor: Actor, id: str) -> JobRow:
        """Let a job rest: it saves first where it is running."""
        with self.database.writing() as session:
            row = _own(session, actor.project, id, held=True)
            if row.status not in ("queued", "running") or row.wanted != "run":
                raise _wrong_state(row, "paused")
            row.wanted = "pause"
            row.status = "paused" if row.submission is None else "pausing"
            tell(session, row, News(f"Job is {row.status}"))
            note(session, actor, "job.pause", id)
            return row

    def resume(self, actor: Actor, id: str) -> JobRow:
        """Queue a paused job again; it goes on from its newest checkpoint."""
        with self.database.writing() as session:
            row = _own(session, actor.project, id, held=True)
            if row.status != "paused":
                raise _wrong_state(row, "resumed")
            row.wanted, row.status, row.not_before = "run", "queued", 0.0
            tell(session, row, News("Job is queued again"))
            note(session, actor, "job.resume", id)
            return row

    def _check_room(self, session: Session, project: str, request: JobRequest) -> None:
        quota = quota_of(session, project)
        waiting = sa.select(sa.func.count()).select_from(JobRow)
        mine = JobRow.project == project, JobRow.status.in_(WAITING)
        most = quota.queued_jobs
        if most is not None and (session.scalar(waiting.where(*mine)) or 0) >= most:
            raise out_of_quota(f"{most} jobs are waiting")
        check_storage(session, project, quota, more=1)
        if quota.gpus is not None and request.ftray.workers * self.gpus_per_worker > quota.gpus:
            raise out_of_quota(f"the job needs more than its {quota.gpus:g} GPUs")

    def _new_row(
        self, session: Session, actor: Actor, request: JobRequest, parent: Parent
    ) -> JobRow:
        training = _data(session, actor, request.training_file, "training_file")
        validation = None
        if request.validation_file is not None:
            validation = _data(session, actor, request.validation_file, "validation_file")
        short, seed = _short(), request.seed
        basis = Basis(
            name=f"ft-{short}",
            short=short,
            project=actor.project,
            base=self.base,
            init_from=parent.init_from,
            training=blobs.path_of(self.root, training.blob),
            validation=None if validation is None else blobs.path_of(self.root, validation.blob),
            rows=training.rows,
            storage=self.root,
            cpus_per_worker=self.config.cpus_per_worker,
        )
        recipe = make_recipe(request, basis, secrets.randbelow(2**31) if seed is None else seed)
        return JobRow(
            id=new_id("ftjob"),
            short=short,
            project=actor.project,
            key=actor.key,
            created=time.time(),
            model=request.model,
            request=recipe.shown,
            details=request.metadata,
            training_file=training.id,
            training_blob=training.blob,
            validation_file=None if validation is None else validation.id,
            validation_blob=None if validation is None else validation.blob,
            run=recipe.run,
            space=recipe.space,
            cpus=request.ftray.workers * self.config.cpus_per_worker,
            gpus=request.ftray.workers * self.gpus_per_worker,
            priority=request.ftray.priority,
            status="queued",
            wanted="run",
            attempt=0,
            failures=0,
            is_launched=False,
            not_before=0.0,
            events=0,
            seen_step=0,
            seen_eval=0,
            is_swept=False,
            stored_bytes=0,
        )


def checkpoint_id(row: CheckpointRow) -> str:
    """Return what clients call a checkpoint."""
    return f"ftckpt-{row.job.removeprefix('ftjob-')}-{row.step}"


def _own(session: Session, project: str, id: str, *, held: bool = False) -> JobRow:
    query = sa.select(JobRow).where(JobRow.id == id, JobRow.project == project)
    row = session.scalars(query.with_for_update() if held else query).one_or_none()
    if row is None:
        raise no_job(id)
    return row


def _data(session: Session, actor: Actor, id: str, param: str) -> FileRow:
    """Return a file that stays until this transaction has ended; then the job's row keeps it."""
    row = live_file(session, actor.project, id, param, held=True)
    if row.purpose != "fine-tune":
        raise ApiError(INVALID, f"{param}: its purpose is {row.purpose}", param)
    return row


def _short() -> str:
    """Draw what ends a model's name: its first letter tells it from the digest of an adapter."""
    return secrets.choice("ghijklmnopqrstuvwxyz") + "".join(
        secrets.choice(_SHORT) for _ in range(7)
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _wrong_state(row: JobRow, what: str) -> ApiError:
    state = "being cancelled" if row.wanted == "cancel" and row.status not in ENDED else row.status
    return ApiError(WRONG_STATE, f"the job is {state}: it cannot be {what}", "id")
