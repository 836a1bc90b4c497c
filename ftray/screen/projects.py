"""Projects and what they may use; the audit log."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType

from ftray.screen.tables import new_table, when

if TYPE_CHECKING:
    from ftray.accounts.audit import Act
    from ftray.accounts.projects import Project


def projects(found: Sequence["Project"]) -> RenderableType:
    """One line for each project."""
    titles = ("project", "keys", "running jobs", "waiting jobs", "GPUs", "files", "GiB")
    table = new_table(*titles)
    for project in found:
        quota = project.quota
        size = None if quota.storage_bytes is None else quota.storage_bytes / 2**30
        limits = (quota.running_jobs, quota.queued_jobs, quota.gpus, quota.files, size)
        table.add_row(project.name, str(project.keys), *(_limit(limit) for limit in limits))
    return table


def acts(found: Sequence["Act"]) -> RenderableType:
    """One line for each change, the newest first."""
    if not found:
        return "nothing was changed yet"
    table = new_table("when", "project", "key", "action", "object")
    for act in found:
        table.add_row(when(act.at), act.project, act.key or "-", act.action, act.object)
    return table


def _limit(limit: float | None) -> str:
    return "any" if limit is None else f"{limit:,.6g}"
