"""The audit log: who changed what, written in the transaction that changes it."""

import time
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ftray.accounts.database import Database
from ftray.accounts.tables import AuditRow


@dataclass(frozen=True)
class Actor:
    """Who does something: a key of a project; an empty key is the command line, or nobody's."""

    project: str
    key: str = ""


@dataclass(frozen=True)
class Act:
    """One line of the log."""

    number: int
    at: float  # unix seconds
    project: str
    key: str
    action: str
    object: str


def note(session: Session, actor: Actor, action: str, object: str) -> None:
    """Write a line; it stays only if the transaction does."""
    row = AuditRow(at=time.time(), project=actor.project, key=actor.key)
    row.action, row.object = action, object
    session.add(row)


def list_acts(
    database: Database, project: str | None = None, before: int | None = None, limit: int = 100
) -> list[Act]:
    """Return the newest lines, of one project or of all, that are older than number `before`."""
    query = sa.select(AuditRow).order_by(AuditRow.number.desc()).limit(limit)
    if project is not None:
        query = query.where(AuditRow.project == project)
    if before is not None:
        query = query.where(AuditRow.number < before)
    with database.reading() as session:
        return [_act_of(row) for row in session.scalars(query)]


def _act_of(row: AuditRow) -> Act:
    return Act(row.number, row.at, row.project, row.key, row.action, row.object)
