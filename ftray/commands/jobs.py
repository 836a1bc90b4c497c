"""Jobs of a cluster, as Python functions.

`cluster` is a cluster file that says where they go; None: what `ftray up` has started.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ftray.commands.clusters import UP, named_cluster

if TYPE_CHECKING:
    from ftray.config.run import RunConfig
    from ftray.config.search import SearchConfig
    from ftray.jobs import JobInfo
    from ftray.submit.asked import How
    from ftray.submit.submission import Submitted


def submit(
    run: str,
    overrides: Sequence[str] = (),
    *,
    cluster: str | None = None,
    space: str | None = None,
    how: "How | None" = None,
) -> "Submitted":
    """Let a cluster train a run, or with a space file search over it; return when it has begun."""
    from ftray.submit.asked import Asked, How
    from ftray.submit.submission import submit as send

    config, asked = _loaded(run, space, overrides)
    on = named_cluster(cluster)
    return send(Asked(config, asked, how or How()), on, cluster or UP)


def list_jobs(*, cluster: str | None = None) -> "list[JobInfo]":
    """Return the jobs of a cluster since it is up, the newest first."""
    from ftray import jobs

    return jobs.list_jobs(_address(cluster))


def show_job(id: str, *, cluster: str | None = None) -> "JobInfo":
    """Return what is known of one job."""
    from ftray import jobs

    address = _address(cluster)
    return jobs.find(address, id) or _unknown(address, id)


def job_logs(id: str, *, cluster: str | None = None, follow: bool = False) -> Iterator[str]:
    """Yield what a job has written, in pieces; with `follow` until it ends."""
    from ftray import jobs

    return jobs.logs(_address(cluster), id, follow=follow)


def stop_job(id: str, *, cluster: str | None = None) -> "JobInfo":
    """Ask a job to end: a run saves after its step, and can go on later. Returns how it is now."""
    from ftray import jobs

    address = _address(cluster)
    jobs.stop(address, id)
    return jobs.find(address, id) or _unknown(address, id)


def _address(name: str | None) -> str:
    from ftray.submit.submission import reached

    return reached(named_cluster(name), name or UP)


def _unknown(address: str, id: str) -> NoReturn:
    from ftray import jobs

    raise jobs.unknown_job(address, id)


def _loaded(
    run: str, space: str | None, overrides: Sequence[str]
) -> "tuple[RunConfig, SearchConfig | None]":
    from ftray.config.run import load_run
    from ftray.config.search import load_search, split_overrides

    if space is None:
        return load_run(Path(run), overrides), None
    of_run, of_search = split_overrides(overrides)
    config = load_run(Path(run), of_run)
    return config, load_search(Path(space), config, of_search)
