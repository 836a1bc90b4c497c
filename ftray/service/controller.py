"""The controller: takes jobs from the queue, watches them, and settles how they ended.

The database is the truth. Whatever is done outside of it (a process started, a file written) can be
done again: a controller that dies anywhere is replaced by one that finds the same rows.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ftray import storage
from ftray.accounts.database import Database
from ftray.config.serve import JobsConfig
from ftray.errors import FtrayError
from ftray.service.events import Level, News, tell
from ftray.service.files import Files
from ftray.service.launcher import Launcher, Seen
from ftray.service.leases import Lease, LostLeaseError
from ftray.service.order import read_end, write_order
from ftray.service.outcome import Data, End, Retrying, Verdict, judge
from ftray.service.progress import (
    Progress,
    Result,
    checkpoint_metrics,
    new_numbers,
    read_progress,
    read_result,
)
from ftray.service.retention import Retention
from ftray.service.shares import Meter
from ftray.service.starter import Starter
from ftray.service.tables import CheckpointRow, JobRow

logger = logging.getLogger(__name__)

LEASE_SECONDS = 10.0
_SWEEP_SECONDS = 600.0


@dataclass(frozen=True)
class Ground:
    """What a controller works with."""

    database: Database
    files: Files
    launcher: Launcher
    config: JobsConfig
    command: Callable[[str, str, str], Sequence[str]]
    """Of the process that works on a job: of the storage root, the job and its submission."""
    known_seconds: float = 1.2
    """After which every server has heard of a version: they look once a second."""


class Controller:
    """Call `round` again and again; of several controllers one works, and the others wait."""

    def __init__(self, ground: Ground, name: str) -> None:
        self._ground = ground
        self._root = ground.files.root
        self._lease = Lease(ground.database, "controller", name, LEASE_SECONDS)
        self._retention = Retention(ground.database, self._root, ground.config)
        self._meter = Meter(ground.database, self._root)
        most = ground.config.running
        self._starter = Starter(ground.database, ground.launcher, self._lease, most)
        self._swept = float("-inf")
        self._published: dict[str, float] = {}  # when a job's result was first seen
        self._read_next: dict[str, float] = {}  # when a submission's files are read again
        self._read_seconds = 10.0 if storage.is_uri(self._root) else 0.5

    def round(self) -> bool:
        """Look at every job that is being worked on, and start others; False: another works."""
        if not self._lease.hold():
            return False
        try:
            for id in self._active():
                self._lease.hold()
                self._look_at(id)
            self._meter.round()
            self._starter.round()
            if time.monotonic() - self._swept > _SWEEP_SECONDS:
                self._swept = time.monotonic()
                self._retention.sweep()
        except LostLeaseError:
            logger.info("another controller has taken over")
            return False
        return True

    def close(self) -> None:
        """Let another controller take over at once."""
        self._lease.release()

    def _active(self) -> Sequence[str]:
        query = sa.select(JobRow.id).where(JobRow.submission.is_not(None)).order_by(JobRow.started)
        with self._ground.database.reading() as session:
            return session.scalars(query).all()

    def _look_at(self, id: str) -> None:
        try:
            with self._ground.database.reading() as session:
                job = session.get_one(JobRow, id)
            self._advance(job, job.submission or "")
        except FtrayError as error:  # cluster or storage are away: the next round looks again
            logger.warning("job %s: %s", id, error.message)

    def _advance(self, job: JobRow, submission: str) -> None:
        seen = self._ground.launcher.find(submission)
        if seen is None and not job.is_launched:
            self._launch(job, submission)
            return
        if seen is not None and not seen.has_ended:
            self._keep_going(job, submission, seen)
            if time.monotonic() < self._read_next.get(submission, 0.0):
                return
        progress = read_progress(self._root, job)
        has_more = self._tell_numbers(job, progress)
        self._read_next[submission] = time.monotonic() + self._read_seconds
        is_over = (seen is None or seen.has_ended) and not has_more
        if is_over and not progress.is_alive:  # else its heartbeat will end soon
            self._settle(job, submission, seen, progress)

    def _launch(self, job: JobRow, submission: str) -> None:
        if job.wanted != "run":
            self._write(job, Verdict("cancelled" if job.wanted == "cancel" else "paused"))
            return
        write_order(self._root, job.id, job.run, job.space)
        words = self._ground.command(self._root, job.id, submission)
        self._ground.launcher.submit(submission, words, _environment(job))
        with self._held(job) as (_, row):
            row.is_launched = True

    def _keep_going(self, job: JobRow, submission: str, seen: Seen) -> None:
        if job.wanted != "run":
            self._ground.launcher.stop(submission)
        elif seen.is_running and job.status == "queued":
            with self._held(job) as (session, row):
                if row.status == "queued":
                    row.status = "running"
                    tell(session, row, News("Fine-tuning job started"))

    def _tell_numbers(self, job: JobRow, progress: Progress) -> bool:
        """Write events; True: there may be more of them."""
        numbers = new_numbers(self._root, job, progress.total_steps)
        if numbers.news:
            with self._held(job) as (session, row):
                tell(session, row, *numbers.news)
                row.seen_step, row.seen_eval = numbers.step, numbers.eval_step
        return bool(numbers.news)

    def _settle(self, job: JobRow, submission: str, seen: Seen | None, progress: Progress) -> None:
        answer = read_end(self._root, job.id, submission)
        code = seen.exit_code if seen is not None else None
        message = answer.message if answer is not None else progress.error
        if code is None and answer is not None:
            code = answer.exit_code
        is_occupied = answer is not None and answer.is_occupied
        end = End(code, message, progress.has_succeeded, job.wanted, is_occupied)
        config = self._ground.config
        retrying = Retrying(job.failures, config.max_failures, config.retry_seconds)
        data = Data(self._root, job.training_blob, job.validation_blob)
        verdict = judge(end, retrying, data)
        if verdict.status == "succeeded":
            self._publish(job)
        else:
            logger.info("job %s is %s: exit code %s %s", job.id, verdict.status, code, message)
            self._write(job, verdict)

    def _publish(self, job: JobRow) -> None:
        """End a job well: from this transaction on its status says so, and its model answers."""
        found = read_result(self._root, job)
        if found is None:
            error = {"code": "training_failed", "param": None, "message": "its model was deleted"}
            self._write(job, Verdict("failed", error))
            return
        since = self._published.setdefault(job.id, time.monotonic())
        if time.monotonic() - since < self._ground.known_seconds:
            return  # the next round
        id = job.id.replace("ftjob-", "file-")
        file = self._ground.files.keep_result(id, job.project, found.table)
        with self._held(job) as (session, row):
            session.add(file)
            session.add_all(_checkpoints(row, found))
            row.tuned_model = found.result.model
            row.trained_tokens, row.result_file = found.tokens, id
            _end(row, "succeeded")
            tell(
                session,
                row,
                News(f"New fine-tuned model created: {row.tuned_model}"),
                News("The job has successfully completed"),
            )
        del self._published[job.id]

    def _write(self, job: JobRow, verdict: Verdict) -> None:
        with self._held(job) as (session, row):
            if verdict.status == "queued":
                _requeue(row, verdict)
                words = "Job was interrupted and is queued again; it goes on from a checkpoint"
                if not verdict.counts:
                    words = "The cluster has no room for the job, which is queued again"
                tell(session, row, News(words, level="warn"))
                return
            row.error = verdict.error
            _end(row, verdict.status)
            level: Level = "error" if verdict.error else "info"
            reason = f": {verdict.error['message']}" if verdict.error else ""
            tell(session, row, News(f"Job {_WORDS[verdict.status]}{reason}", level=level))

    @contextmanager
    def _held(self, job: JobRow) -> Iterator[tuple[Session, JobRow]]:
        """Change a job's row, if this still is the controller and that attempt the job's."""
        with self._ground.database.writing() as session:
            self._lease.check(session)
            row = session.get_one(JobRow, job.id, with_for_update=True)
            if row.submission != job.submission:
                raise LostLeaseError
            yield session, row


_WORDS = {"failed": "failed", "paused": "is paused", "cancelled": "was cancelled"}


def _end(row: JobRow, status: str) -> None:
    row.status, row.submission, row.is_launched = status, None, False
    row.stored_bytes = None
    row.finished = None if status == "paused" else time.time()


def _requeue(row: JobRow, verdict: Verdict) -> None:
    row.status, row.submission, row.is_launched = "queued", None, False
    row.failures += verdict.counts
    row.not_before = time.time() + verdict.retry_after


def _checkpoints(row: JobRow, found: Result) -> list[CheckpointRow]:
    return [
        CheckpointRow(
            job=row.id,
            step=(step := int(record.metrics.get("step") or 0)),
            created=record.created,
            model=f"{record.model}:ckpt-step-{step}",
            metrics=checkpoint_metrics(record, found),
        )
        for record in found.checkpoints
    ]


def _environment(job: JobRow) -> dict[str, str]:
    """Return what a job's process is told by its environment: nothing that is a secret."""
    env = {"RAY_JOB_STOP_WAIT_TIME_S": "120"}  # so long may a save take before it is killed
    for integration in job.request["integrations"]:
        wandb = integration["wandb"]
        env["WANDB_PROJECT"] = wandb["project"]
        env |= {"WANDB_ENTITY": wandb["entity"]} if wandb["entity"] else {}
        env |= {"WANDB_TAGS": ",".join(wandb["tags"])} if wandb["tags"] else {}
    return env
