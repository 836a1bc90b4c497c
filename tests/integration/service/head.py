"""A Ray head of one's own, with a dashboard: `ray.init` gives its agent no port of its own.

All Rays of a machine want the same one, and a Ray that does not get it starts no jobs. They also
tell by one file where the last of them listens, unless they have folders of their own.
"""

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

_START_SECONDS = 200.0


@contextmanager
def ray_head(cpus: int) -> Iterator[None]:
    """Start one in a folder of its own, and be connected to it for the block's time."""
    with ray_folder() as folder, started_head(cpus, folder) as address:
        ray.init(address, log_to_driver=False)
        yield
        ray.shutdown()


def ray_folder() -> "tempfile.TemporaryDirectory[str]":
    """Sockets lie in it, whose paths have to be short."""
    return tempfile.TemporaryDirectory(prefix="ftray-head-", ignore_cleanup_errors=True)


@contextmanager
def started_head(cpus: int, folder: str) -> Iterator[str]:
    """Start one for the block's time; yields its address when it is the folder's last one."""
    port = free_port()
    options = {
        "port": port,
        "node-ip-address": "127.0.0.1",
        "dashboard-host": "127.0.0.1",
        "dashboard-port": free_port(),
        "ray-client-server-port": free_port(),
        "dashboard-agent-listen-port": free_port(),
        "num-cpus": cpus,
        "object-store-memory": 200_000_000,
        "temp-dir": folder,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    program = Path(sys.executable).with_name("ray")
    head = subprocess.Popen([program, "start", "--head", "--block", *words], stdout=sys.stderr)
    try:
        last = Path(folder) / "ray_current_cluster"
        end = time.monotonic() + _START_SECONDS
        while not (last.exists() and last.read_text().endswith(f":{port}")):
            assert head.poll() is None
            assert time.monotonic() < end
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
