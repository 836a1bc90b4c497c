"""Events of a job: each has the next number, taken under the lock of the job's row."""

import time
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ftray.service.pages import Page, Query, cut, no_cursor
from ftray.service.tables import EventRow, JobRow

Level = Literal["info", "warn", "error"]


@dataclass(frozen=True)
class News:
    """An event that is not numbered yet; with numbers it is one of metrics."""

    message: str
    level: Level = "info"
    data: dict[str, Any] | None = None


def tell(session: Session, job: JobRow, *news: News) -> None:
    """Write events; the caller holds the job's row, so that no number is taken twice."""
    for one in news:
        job.events += 1
        row = EventRow(job=job.id, number=job.events, created=time.time(), message=one.message)
        row.level, row.data = one.level, one.data
        row.type = "message" if one.data is None else "metrics"
        session.add(row)


def event_id(row: EventRow) -> str:
    """Return what clients call an event."""
    return f"ftevent-{row.job.removeprefix('ftjob-')}-{row.number}"


def event_page(session: Session, job: JobRow, query: Query) -> Page[EventRow]:
    """Return a page of a job's events, the newest first; raises ApiError for a foreign cursor."""
    rows = sa.select(EventRow).where(EventRow.job == job.id).order_by(EventRow.number.desc())
    if query.after is not None:
        start, _, number = query.after.rpartition("-")
        is_number = number.isascii() and number.isdecimal() and len(number) < 12
        if start != f"ftevent-{job.id.removeprefix('ftjob-')}" or not is_number:
            raise no_cursor(query.after)
        if not 1 <= int(number) <= job.events:
            raise no_cursor(query.after)
        rows = rows.where(EventRow.number < int(number))
    return cut(session.scalars(rows.limit(query.limit + 1)).all(), query)
