"""A Ray head of one's own, with a dashboard: `ray.init` gives its agent no port of its own.

All Rays of a machine want the same one, and a Ray that does not get it starts no jobs.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray


@contextmanager
def ray_head(cpus: int) -> Iterator[None]:
    """Start it, and be connected to it for the block's time."""
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
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    program = Path(sys.executable).with_name("ray")
    head = subprocess.Popen([program, "start", "--head", "--block", *words], stdout=sys.stderr)
    try:
        connect(f"127.0.0.1:{port}")
        yield
        ray.shutdown()
    finally:
        head.terminate()
        head.wait(30)


def connect(address: str) -> None:
    end = time.monotonic() + 90
    while True:
        try:
            ray.init(address, log_to_driver=False)
        except ConnectionError:
            assert time.monotonic() < end
            time.sleep(0.5)
        else:
            return


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
