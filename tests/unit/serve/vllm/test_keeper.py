"""No server outlives its owner, whatever ends it."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from ftray.serve.vllm import keeper

# A server with a worker: both end up in the file, and neither minds SIGTERM.
SERVER = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1], "w").write(f"{os.getpid()} {worker.pid}")
time.sleep(60)
"""
OWNER = """
import subprocess, sys, time
subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)
time.sleep(60)
"""


@pytest.fixture
def command(tmp_path):
    server = [sys.executable, "-c", SERVER, str(tmp_path / "pids")]
    return [sys.executable, "-I", keeper.__file__, "0.2", *server]


def test_what_a_killed_owner_had_started_is_ended(command, tmp_path):
    owner = subprocess.Popen([sys.executable, "-c", OWNER, *command])
    pids = written(tmp_path / "pids")
    owner.kill()
    owner.wait()
    assert all_gone(pids)


def test_a_killed_keeper_takes_the_server_with_it(command, tmp_path):
    with subprocess.Popen(command, stdin=subprocess.PIPE) as watching:
        server, worker = written(tmp_path / "pids")
        watching.kill()
        assert all_gone([server])
    os.kill(worker, signal.SIGKILL)  # of the server's own workers it cannot know


def test_a_killed_server_takes_its_workers_with_it(command, tmp_path):
    with subprocess.Popen(command, stdin=subprocess.PIPE) as watching:
        server, worker = written(tmp_path / "pids")
        os.kill(server, signal.SIGKILL)
        assert watching.wait() == -signal.SIGKILL % 256
        assert all_gone([server, worker])


def written(path):
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if path.exists() and len(pids := path.read_text().split()) == 2:
            return [int(pid) for pid in pids]
        time.sleep(0.02)
    raise AssertionError("the server has not started")


def all_gone(pids):
    end = time.monotonic() + 5
    while time.monotonic() < end:
        if not any(is_alive(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
