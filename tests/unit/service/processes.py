"""A launcher of real processes on this machine: what it knows is in a folder, as Ray's in Ray."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from ftray.service.launcher import Room, Seen

HERE = Path(__file__).parent
WORK = HERE / "work.py"

Forks = subprocess.Popen[str]


@contextmanager
def forking() -> Iterator[Forks]:
    """A process to fork those of jobs from, ready to."""
    program = [sys.executable, HERE / "forks.py"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(program, **pipes) as forks:
        assert forks.stdout is not None
        assert forks.stdout.readline() == "ready\n"
        yield forks  # its input ends with the block, and so does it


class Processes:
    """Any number of these over one folder know the same processes."""

    def __init__(self, folder: Path, forks: Forks) -> None:
        folder.mkdir(exist_ok=True)
        self.has = Room(math.inf, math.inf, math.inf, math.inf)
        self._folder = folder
        self._forks = forks

    def close(self) -> None:
        """Let nothing be left behind, nor begin later."""
        for path in list(self._folder.iterdir()):
            if not path.suffix and self._number(f"{path.name}.exit") is None:
                self.kill(path.name)

    def submit(self, id: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        try:
            (self._folder / id).touch(exist_ok=False)
        except FileExistsError:
            return
        line = [str(self._folder / id), command[2:], dict(env)]
        assert self._forks.stdin is not None
        self._forks.stdin.write(f"{json.dumps(line)}\n")
        self._forks.stdin.flush()

    def find(self, id: str) -> Seen | None:
        if not (self._folder / id).exists():
            return None
        pid = self._number(f"{id}.pid")
        if pid is None:
            return Seen(is_running=False)
        is_running = _is_running(pid)
        ended = self._number(f"{id}.exit")  # after the look: it may have ended just now
        if ended is None and is_running:
            return Seen(is_running=True)
        return Seen(is_running=False, has_ended=True, exit_code=ended)

    def stop(self, id: str) -> None:
        pid = self._number(f"{id}.pid")
        with suppress(psutil.NoSuchProcess):  # it has ended, perhaps since the last line
            for child in [] if pid is None else psutil.Process(pid).children():
                child.send_signal(signal.SIGTERM)

    def room(self, ours: Collection[str]) -> Room:
        return self.has

    def kill(self, id: str) -> None:
        """What no launcher does: the power cut."""
        end = time.monotonic() + 60
        while (pid := self._number(f"{id}.pid")) is None:
            assert time.monotonic() < end
            time.sleep(0.01)
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # it has just ended
        while psutil.pid_exists(pid):
            time.sleep(0.01)

    def _number(self, name: str) -> int | None:
        path = self._folder / name
        text = path.read_text().strip() if path.exists() else ""
        return int(text) if text else None


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def work(root: str, job: str, submission: str) -> list[str]:
    """The command line of a job that takes a second instead of training."""
    return [sys.executable, str(WORK), root, job, submission]
