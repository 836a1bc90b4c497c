"""A launcher of real processes on this machine: what it knows is in a folder, as Ray's in Ray."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from ftray.service.launcher import Seen

WORK = Path(__file__).with_name("work.py")
_SHELL = 'echo $$ > "$0.pid"; "$@"; echo $? > "$0.exit.new"; mv "$0.exit.new" "$0.exit"'


class Processes:
    """Any number of these over one folder know the same processes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def close(self) -> None:
        """Let nothing be left behind."""
        for process in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def submit(self, id: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        try:
            (self._folder / id).touch(exist_ok=False)
        except FileExistsError:
            return
        with (self._folder / f"{id}.log").open("wb") as log:
            started = subprocess.Popen(
                ["sh", "-c", _SHELL, str(self._folder / id), *command],
                stdout=log,
                stderr=log,
                env={**os.environ, **env},
                start_new_session=True,
            )
        self._started.append(started)  # or Python would warn of what it has forgotten

    def find(self, id: str) -> Seen | None:
        if not (self._folder / id).exists():
            return None
        pid, ended = self._number(f"{id}.pid"), self._number(f"{id}.exit")
        if ended is not None:
            return Seen(is_running=False, has_ended=True, exit_code=ended)
        if pid is None:
            return Seen(is_running=False)
        is_running = psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"
        return Seen(is_running=is_running, has_ended=not is_running)

    def stop(self, id: str) -> None:
        for child in self._below(id):
            child.send_signal(signal.SIGTERM)

    def kill(self, id: str) -> None:
        """What no launcher does: the power cut."""
        pid = self._number(f"{id}.pid")
        assert pid is not None
        os.killpg(pid, signal.SIGKILL)

    def _below(self, id: str) -> list[psutil.Process]:
        pid = self._number(f"{id}.pid")
        try:
            return [] if pid is None else psutil.Process(pid).children()
        except psutil.NoSuchProcess:
            return []

    def _number(self, name: str) -> int | None:
        path = self._folder / name
        text = path.read_text().strip() if path.exists() else ""
        return int(text) if text else None


def work(root: str, job: str, submission: str) -> list[str]:
    """The command line of a job that takes a second instead of training."""
    return [sys.executable, str(WORK), root, job, submission]
