"""The tables of the service, beside those of accounts; `accounts.migrations` makes them."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Double, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from ftray.accounts.database import Base

_JSON = JSON(none_as_null=True)


class FileRow(Base):
    """An uploaded file, or one with a job's results; its bytes lie by digest in the storage root.

    One that was deleted keeps its row, so that pages that were being turned go on.
    """

    __tablename__ = "files"
    __table_args__ = (Index("ix_files_page", "project", "created", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project: Mapped[str] = mapped_column(String(100))
    created: Mapped[float] = mapped_column(Double)  # unix seconds, as all times here
    blob: Mapped[str] = mapped_column(String(80), index=True)  # digest and kind: <sha256>.jsonl
    bytes: Mapped[int] = mapped_column(BigInteger)
    rows: Mapped[int] = mapped_column(BigInteger)
    filename: Mapped[str] = mapped_column(String(255))  # for people; never a path
    purpose: Mapped[str] = mapped_column(String(32))
    is_stored: Mapped[bool]
    expires: Mapped[float | None] = mapped_column(Double)
    deleted: Mapped[float | None] = mapped_column(Double)


class JobRow(Base):
    """A fine-tuning job: what was asked for, how far it is, and what the controller has to do."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_page", "project", "created", "id"),
        Index("ix_jobs_status", "status"),
        Index("ix_jobs_idempotency", "project", "idempotency_key", unique=True),
        Index("ix_jobs_stored", "project", "stored_bytes"),
        Index("ix_jobs_submission", "submission", "stored_bytes"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    short: Mapped[str] = mapped_column(String(8), unique=True)  # the end of its model's name
    project: Mapped[str] = mapped_column(String(100))
    key: Mapped[str] = mapped_column(String(12))
    created: Mapped[float] = mapped_column(Double)
    idempotency_key: Mapped[str | None] = mapped_column(String(255))

    model: Mapped[str] = mapped_column(Text)  # as it was asked for
    request: Mapped[dict[str, Any]] = mapped_column(JSON)  # as it is shown
    details: Mapped[dict[str, str]] = mapped_column(JSON)  # the user's `metadata`
    training_file: Mapped[str] = mapped_column(String(40))
    training_blob: Mapped[str] = mapped_column(String(80), index=True)
    validation_file: Mapped[str | None] = mapped_column(String(40))
    validation_blob: Mapped[str | None] = mapped_column(String(80), index=True)
    run: Mapped[dict[str, Any]] = mapped_column(JSON)  # the run's config
    space: Mapped[dict[str, Any] | None] = mapped_column(_JSON)  # of a search; null: one run
    cpus: Mapped[float] = mapped_column(Double, server_default="1")  # of all its workers
    gpus: Mapped[float] = mapped_column(Double)
    priority: Mapped[int] = mapped_column(Integer)

    status: Mapped[str] = mapped_column(String(16))
    wanted: Mapped[str] = mapped_column(String(8))  # run, pause or cancel
    attempt: Mapped[int] = mapped_column(Integer)  # starts so far
    failures: Mapped[int] = mapped_column(Integer)  # of those, the ones that count
    submission: Mapped[str | None] = mapped_column(String(60))  # what works on it now
    is_launched: Mapped[bool]  # whether the launcher has surely heard of it
    not_before: Mapped[float] = mapped_column(Double)
    started: Mapped[float | None] = mapped_column(Double)  # last
    finished: Mapped[float | None] = mapped_column(Double)
    error: Mapped[dict[str, Any] | None] = mapped_column(_JSON)
    tuned_model: Mapped[str | None] = mapped_column(Text)
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    result_file: Mapped[str | None] = mapped_column(String(40))
    events: Mapped[int] = mapped_column(BigInteger)  # how many there are: the last one's number
    seen_step: Mapped[int] = mapped_column(BigInteger)  # up to which there are events
    seen_eval: Mapped[int] = mapped_column(BigInteger)
    is_swept: Mapped[bool]  # its run's files are gone
    stored_bytes: Mapped[int | None] = mapped_column(BigInteger)  # null: to measure


class EventRow(Base):
    """Something that happened to a job; numbers go up by one from 1."""

    __tablename__ = "events"

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    created: Mapped[float] = mapped_column(Double)
    level: Mapped[str] = mapped_column(String(8))
    type: Mapped[str] = mapped_column(String(8))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any] | None] = mapped_column(_JSON)


class CheckpointRow(Base):
    """A checkpoint that can be called."""

    __tablename__ = "checkpoints"

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    created: Mapped[float] = mapped_column(Double)
    model: Mapped[str] = mapped_column(Text)
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON)


class LeaseRow(Base):
    """Who alone may do something until when; its row is also what writers wait for one another."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    holder: Mapped[str] = mapped_column(String(64))
    until: Mapped[float] = mapped_column(Double)
