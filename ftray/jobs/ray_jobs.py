"""Submit, watch and stop jobs over Ray's Jobs API."""

import asyncio
import shlex
from collections.abc import AsyncGenerator, Iterator
from typing import cast

import requests
from ray._private.services import get_webui_url_from_internal_kv
from ray.job_submission import JobDetails, JobType

from ftray.errors import ClusterError
from ftray.jobs.border import Border, RefusedError
from ftray.jobs.client import Client
from ftray.jobs.job import JobInfo, JobSpec, State


def submit(address: str, spec: JobSpec) -> str:
    """Start a job and return its id; one whose id is already there is left as it is.

    The cluster decides which of several submitters of one id wins: there is one job in any case.
    """
    client = Client(address)
    runtime_env: dict[str, object] = {"env_vars": dict(spec.env)} if spec.env else {}
    if spec.working_dir is not None:
        runtime_env["working_dir"] = str(spec.working_dir)
    with Border(address):
        try:
            client.submit_job(
                entrypoint=f"exec {shlex.join(spec.command)}",  # a signal then reaches it, no shell
                submission_id=spec.id,
                runtime_env=runtime_env,
                metadata=dict(spec.metadata),
                entrypoint_num_cpus=spec.cpus or None,
            )
        except RefusedError:
            if find(address, spec.id) is None:
                raise
        except requests.RequestException:
            raise  # of which some are ValueErrors
        except ValueError as error:  # what Ray finds wrong before it sends anything
            raise ClusterError(f"job {spec.id}: {error}") from None
    return spec.id


def find(address: str, id: str) -> JobInfo | None:
    """Return what is known of a job, None if the cluster knows no such job."""
    client = Client(address)
    with Border(address):
        try:
            return _info(client.get_job_info(id))
        except RefusedError as error:
            if error.status != 404:
                raise
            return None


def list_jobs(address: str) -> list[JobInfo]:
    """Return all jobs that were submitted to a cluster since it is up, the newest first."""
    client = Client(address)
    with Border(address):
        found = [_info(one) for one in client.list_jobs() if one.type is JobType.SUBMISSION]
    return sorted(found, key=lambda job: job.started or 0.0, reverse=True)


def stop(address: str, id: str) -> bool:
    """Ask a job to end; return whether it was running. Returns before it has ended.

    It gets SIGTERM, and SIGKILL after RAY_JOB_STOP_WAIT_TIME_S (of its `env`; 3 s). One that still
    waits for its `cpus` ends when it gets them; Ray fails it when that takes 15 minutes (2.60).
    """
    client = Client(address)
    with Border(address):
        try:
            return bool(client.stop_job(id))
        except RefusedError as error:
            if error.status != 404:
                raise
    raise unknown_job(address, id)


def logs(address: str, id: str, *, follow: bool = False) -> Iterator[str]:
    """Yield what a job has written, as text in pieces; with `follow` until it ends."""
    if find(address, id) is None:
        raise unknown_job(address, id)
    client = Client(address)
    if not follow:
        with Border(address):
            text: str = client.get_job_logs(id)
        yield text
        return
    pieces = cast("AsyncGenerator[str]", client.tail_job_logs(id))
    with asyncio.Runner() as runner:
        try:
            while True:
                with Border(address):
                    piece = runner.run(_next(pieces))
                if piece is None:
                    return
                yield piece
        finally:
            runner.run(pieces.aclose())


def ray_version(address: str) -> str:
    """Return the version of Ray that a cluster runs."""
    client = Client(address)
    with Border(address):
        answer = client._do_request("GET", "/api/version")
        if answer.status_code != 200:
            raise RefusedError(answer.status_code, answer.text)
        return str(answer.json().get("ray_version"))


def here() -> str | None:
    """Return the address for the cluster that this process is connected to, as a job or an actor.

    None: it has no dashboard, as the one that `ftray train` starts for itself.
    """
    known = get_webui_url_from_internal_kv()
    return f"http://{known}" if known else None


def unknown_job(address: str, id: str) -> ClusterError:
    """Say that there is no such job."""
    return ClusterError(f"the cluster at {address} has no job '{id}'", "ftray jobs list")


def _info(found: JobDetails) -> JobInfo:
    return JobInfo(
        id=found.submission_id or "",
        state=_STATES[found.status.value],
        message=found.message or "",
        command=found.entrypoint.removeprefix("exec "),
        exit_code=found.driver_exit_code,
        started=_seconds(found.start_time),
        ended=_seconds(found.end_time),
        metadata=found.metadata or {},
    )


_STATES: dict[str, State] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "STOPPED": "stopped",
}


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None


async def _next(pieces: AsyncGenerator[str]) -> str | None:
    return await anext(pieces, None)
