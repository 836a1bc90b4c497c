"""Projects: who shares files, jobs and models, and how much of the service they may use."""

import time
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ftray.accounts.audit import Actor, note
from ftray.accounts.database import Database
from ftray.accounts.grant import DEFAULT_PROJECT, Quota, check_project
from ftray.accounts.tables import KeyRow, ProjectRow
from ftray.errors import ConfigError


@dataclass(frozen=True)
class Project:
    """A project by its name."""

    name: str
    quota: Quota
    keys: int  # that are not revoked


def quota_of(session: Session, project: str) -> Quota:
    """Return what a project may use; one that nobody has set limits for has the default ones."""
    row = session.get(ProjectRow, project)
    return Quota() if row is None else _quota(row)


def quotas(session: Session) -> dict[str, Quota]:
    """Return the limits of all projects that have limits of their own."""
    return {row.name: _quota(row) for row in session.scalars(sa.select(ProjectRow))}


def set_project(database: Database, name: str, quota: Quota) -> Project:
    """Make a project with limits, or change the limits of one."""
    check_project(name)
    limits = (quota.running_jobs, quota.queued_jobs, quota.gpus, quota.storage_bytes, quota.files)
    if any(limit is not None and limit < 0 for limit in limits):
        raise ConfigError("a limit of a project is not below 0")
    with database.writing() as session:
        row = session.get(ProjectRow, name) or ProjectRow(name=name, created=time.time())
        row.running_jobs, row.queued_jobs, row.gpus = limits[:3]
        row.storage_bytes, row.files = quota.storage_bytes, quota.files
        session.add(row)
        note(session, Actor(name), "project.set", name)
        keys = session.scalar(sa.select(sa.func.count()).where(_is_live(), KeyRow.project == name))
    return Project(name, quota, keys or 0)


def list_projects(database: Database) -> list[Project]:
    """Return all projects that have limits or keys, and the default one, by name."""
    by_project = sa.select(KeyRow.project, sa.func.count()).where(_is_live())
    with database.reading() as session:
        keys = {name: count for name, count in session.execute(by_project.group_by(KeyRow.project))}
        known = quotas(session)
    names = sorted({*keys, *known, DEFAULT_PROJECT})
    return [Project(name, known.get(name, Quota()), keys.get(name, 0)) for name in names]


def _is_live() -> sa.ColumnElement[bool]:
    return KeyRow.revoked.is_(None)


def _quota(row: ProjectRow) -> Quota:
    return Quota(
        running_jobs=row.running_jobs,
        queued_jobs=row.queued_jobs,
        gpus=row.gpus,
        storage_bytes=row.storage_bytes,
        files=row.files,
    )
