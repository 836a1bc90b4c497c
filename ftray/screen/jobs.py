"""Jobs of a cluster."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from ftray.screen.tables import duration, fact_list, new_table, next_commands, when

if TYPE_CHECKING:
    from ftray.jobs import JobInfo
    from ftray.submit.submission import Submitted


def submitted(found: "Submitted") -> RenderableType:
    """The job, and how to watch it."""
    job, where = found.job, f"--cluster {found.cluster}"
    facts = {"job": job.id, "state": job.state, "run": found.name, "storage": found.storage}
    if job.state == "pending":
        facts["waits"] = _line(job.message)
    watch = [
        f"ftray jobs logs -f {job.id} {where}",
        f"ftray jobs show {job.id} {where}",
        f"ftray jobs stop {job.id} {where}",
    ]
    return Group(fact_list(facts), "", next_commands(watch))


def jobs(found: Sequence["JobInfo"]) -> RenderableType:
    """One line for each job."""
    if not found:
        return "no jobs yet: ftray submit train run.yaml"
    table = new_table("job", "state", "run", "submitted", "took", "exit code")
    for job in found:
        code = "–" if job.exit_code is None else str(job.exit_code)
        run = job.metadata.get("run", "–")
        table.add_row(job.id, job.state, run, _when(job.started), _took(job), code)
    return table


def job(found: "JobInfo") -> RenderableType:
    """What is known of a job."""
    facts = {
        "state": found.state,
        "message": found.message.strip(),
        "run": found.metadata.get("run", "–"),
        "submitted": _when(found.started),
        "took": _took(found),
        "exit code": "–" if found.exit_code is None else str(found.exit_code),
        "command": found.command,
    }
    return Group(found.id, fact_list(facts))


def stopped(found: "JobInfo") -> str:
    """Whether it is over."""
    if found.is_over:
        return f"job {found.id} is {found.state}"
    return f"job {found.id} was told to stop: a run saves after its step, and can go on later"


def _when(moment: float | None) -> str:
    return "–" if moment is None else when(moment)


def _took(job: "JobInfo") -> str:
    return "–" if job.started is None else duration((job.ended or time.time()) - job.started)


def _line(text: str) -> str:
    return " ".join(text.split())
