"""Start a cluster and the service on this machine, and stop them again."""

import fcntl
import logging
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ftray import credentials, jobs, storage
from ftray.config.base import Tree
from ftray.config.cluster import ClusterConfig
from ftray.config.serve import Served
from ftray.deployment import standing as record
from ftray.deployment.application import deploy, is_ready, url_of, wait_until_ready, withdraw
from ftray.deployment.head import addresses, cpus_of, start_head, wait_for_head
from ftray.deployment.processes import end_all, ours
from ftray.deployment.standing import Standing
from ftray.errors import ClusterError, ConfigError
from ftray.ports import free_port

logger = logging.getLogger(__name__)

_STOP_SECONDS = 120.0  # for runs to save


@dataclass(frozen=True)
class Up:
    """What is up; `was_up`: it was before, and nothing has been changed."""

    standing: Standing
    was_up: bool
    is_ready: bool


@dataclass(frozen=True)
class Down:
    """What was stopped; `killed` counts processes that did not end by themselves."""

    was_up: bool
    jobs: int = 0
    killed: int = 0


def up(served: Served, config: Tree, sizes: ClusterConfig) -> Up:
    """Start Ray and the application that Serve's `config` describes; they outlive this process.

    What an earlier one left behind, killed in the middle, is cleaned up first.
    """
    if sizes.address != "local":
        raise ConfigError(
            f"ftray up starts a cluster of its own; the file names the one at '{sizes.address}'",
            "on that cluster: serve deploy deploy/serve.yaml",
        )
    with _alone():
        before = record.read()
        if before is not None and before.is_ready and before.head and before.head.is_alive:
            return Up(before, was_up=True, is_ready=is_ready(before))
        if before is not None:
            _clear(before)
        standing = _planned(served, sizes)
        record.write(standing)  # first, so that `down` finds what a killed `up` has started
        try:
            standing = _started(standing, config, sizes)
        except BaseException:
            _clear(standing)
            raise
        return Up(standing, was_up=False, is_ready=True)


def down() -> Down:
    """Stop what `up` started, and nothing else: jobs first, so that runs save."""
    with _alone():
        standing = record.read()
        if standing is None:
            return Down(was_up=False)
        stopped = _stop_work(standing)
        killed = _clear(standing)
        return Down(was_up=True, jobs=stopped, killed=killed)


def _planned(served: Served, sizes: ClusterConfig) -> Standing:
    free_port(served.http.host, served.http.port, "http.port=8001")
    address, dashboard = addresses()
    return Standing(
        mark=secrets.token_hex(8),
        started=time.time(),
        session=tempfile.mkdtemp(prefix="ftray-up-"),
        address=address,
        jobs=f"http://{dashboard}",
        token_file=str(record.folder().absolute() / "token"),
        url=url_of(served.http),
        model=served.app.model.name,
        storage=storage.storage_root(served.app.storage),
        cpus=cpus_of(sizes, served.app),
    )


def _started(standing: Standing, config: Tree, sizes: ClusterConfig) -> Standing:
    logger.info("starting Ray")
    standing = replace(standing, head=start_head(standing, sizes))
    record.write(standing)
    wait_for_head(standing)
    logger.info("starting the application: a base model is loaded")
    deploy(standing, config)
    wait_until_ready(standing)
    standing = replace(standing, is_ready=True)
    record.write(standing)
    return standing


def _stop_work(standing: Standing) -> int:
    """Let jobs and answers end in good order, if their cluster still answers; count the jobs."""
    if standing.head is None or not standing.head.is_alive:
        return 0
    try:
        credentials.use_token(standing.token_file)
        stopped = _stop_jobs(standing)
        withdraw(standing)
    except ClusterError as error:
        logger.warning("it could not be stopped in good order: %s", error.message)
        return 0
    return stopped


def _stop_jobs(standing: Standing) -> int:
    running = {job.id for job in jobs.list_jobs(standing.jobs) if job.state == "running"}
    for id in running:
        logger.info("stopping job %s", id)
        jobs.stop(standing.jobs, id)
    end = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < end and any(
        job.state == "running" and job.id in running for job in jobs.list_jobs(standing.jobs)
    ):
        time.sleep(0.3)
    return len(running)


def _clear(standing: Standing) -> int:
    if found := ours(standing):
        logger.info("stopping %d processes", len(found))
    killed = end_all(standing)
    shutil.rmtree(standing.session, ignore_errors=True)
    record.forget()
    return killed


@contextmanager
def _alone() -> Iterator[None]:
    """Let one `up` or `down` of this user run at a time."""
    folder = record.folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ClusterError(
                "another ftray up or ftray down is at work", "wait until it is done"
            ) from None
        yield
