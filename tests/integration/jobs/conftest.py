"""A cluster with a dashboard and a token, as jobs find one elsewhere."""

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import fsspec
import psutil
import pytest
from moto.server import ThreadedMotoServer

from ftray import jobs
from ftray.connection import own_address
from ftray.errors import ClusterError

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Head:
    """A cluster of one machine: the address of its dashboard, and the file with its token."""

    address: str
    token_file: Path


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """An S3 server with a bucket, and the environment in which clients find it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    yield environment
    server.stop()


@pytest.fixture
def bucket(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A storage root that the cluster and we reach, as two users of one S3."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()  # of other tests, for other servers
    fsspec.filesystem("s3", use_listings_cache=False).makedirs("s3://jobs", exist_ok=True)
    yield "s3://jobs/ftray"
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, s3: dict[str, str]) -> Iterator[Head]:
    """A cluster of 3 CPUs that lets nobody in without its token; gone before other tests begin."""
    folder = tmp_path_factory.mktemp("head")
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(16))
    port, dashboard_port = free_port(), free_port()
    ray = [Path(sys.executable).with_name("ray"), "start", "--head", "--block"]
    ports = [
        f"--port={port}",
        f"--dashboard-port={dashboard_port}",
        f"--ray-client-server-port={free_port()}",
        f"--dashboard-agent-listen-port={free_port()}",  # else a second Ray here has no jobs
    ]
    size = ["--num-cpus=3", "--object-store-memory=200000000", "--dashboard-host=127.0.0.1"]
    session = tempfile.mkdtemp(prefix="ftray-head-")  # short: sockets lie in it
    found = Head(f"http://127.0.0.1:{dashboard_port}", token)
    with subprocess.Popen(
        [*ray, *ports, *size, f"--node-ip-address={own_address()}", f"--temp-dir={session}"],
        env={
            **os.environ,
            **s3,
            "PATH": f"{ray[0].parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            with pytest.MonkeyPatch.context() as patch:
                admit(patch, found)
                _wait_until_up(found.address)
            yield found
        finally:
            _end(process)
    shutil.rmtree(session, ignore_errors=True)


@pytest.fixture
def admitted(head: Head, monkeypatch: pytest.MonkeyPatch) -> Head:
    """The cluster, for a user who has its token."""
    admit(monkeypatch, head)
    return head


def admit(patch: pytest.MonkeyPatch, head: Head) -> None:
    patch.setenv("RAY_AUTH_MODE", "token")
    patch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token_file))


@pytest.fixture
def cluster_file(admitted: Head, tmp_path: Path) -> str:
    """What a user writes down of the cluster."""
    path = tmp_path / "cluster.yaml"
    address = f"address: auto\njobs: {admitted.address}\ntoken_file: {admitted.token_file}\n"
    path.write_text(address)
    return str(path)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until_over(address: str, id: str, seconds: float = 60) -> jobs.JobInfo:
    """Wait until a job has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        info = jobs.find(address, id)
        assert info is not None
        if info.is_over:
            return info
        time.sleep(0.2)
    raise AssertionError(f"job {id} is still {info.state}: {info.message}")


def _wait_until_up(address: str) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            jobs.list_jobs(address)
            if jobs.capacities(address):  # its machine comes a moment later
                return
        except ClusterError:
            if time.monotonic() > end:
                raise
        assert time.monotonic() < end
        time.sleep(0.3)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End Ray as `ftray down` does: told first, then all that is of its session."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(4)
    for one in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.Error):
            if os.getsid(one.pid) == process.pid:
                one.kill()
