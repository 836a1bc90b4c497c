"""Projects and the audit log, as Python functions."""

from typing import TYPE_CHECKING

from ftray.commands.keys import accounts

if TYPE_CHECKING:
    from ftray.accounts.audit import Act
    from ftray.accounts.grant import Quota
    from ftray.accounts.projects import Project


def list_projects(*, storage: str | None = None) -> "list[Project]":
    """Return all projects that have keys or limits of their own, with what they may use."""
    from ftray.accounts import projects

    with accounts(storage) as database:
        return projects.list_projects(database)


def set_project(name: str, quota: "Quota", *, storage: str | None = None) -> "Project":
    """Set what a project may use; what is running goes on."""
    from ftray.accounts import projects

    with accounts(storage) as database:
        return projects.set_project(database, name, quota)


def audit_log(
    project: str | None = None, *, limit: int = 100, storage: str | None = None
) -> "list[Act]":
    """Return who changed what, the newest first; of one project or of all."""
    from ftray.accounts.audit import list_acts

    with accounts(storage) as database:
        return list_acts(database, project, limit=limit)
