"""The `ftray train` command as a process, and the processes below it."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

_LAST_WORDS = 4000  # characters


class Driver:
    """Starts the command, knows its descendants, and leaves none of them behind.

    Only processes that were seen below the command are ever sent a signal; psutil checks that a pid
    still is the same process.
    """

    def __init__(self, folder: Path, changes: Sequence[str]) -> None:
        command = [sys.executable, "-m", "ftray", "train", "run.yaml", *changes]
        self._log = folder / "driver.log"
        self._seen: set[psutil.Process] = set()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--cluster", "cluster.yaml"],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"},
            )

    @property
    def code(self) -> int | None:
        """The exit code, None while the command runs."""
        return self._process.poll()

    def look(self) -> None:
        """Remember what the command has started."""
        if self.code is not None:
            return
        try:
            self._seen |= set(psutil.Process(self._process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return

    def send(self, sign: int) -> None:
        """Send the command itself a signal."""
        self.look()
        self._process.send_signal(sign)

    def wait(self, seconds: float) -> int | None:
        """Wait for the command's end; None if it does not come."""
        end = time.monotonic() + seconds
        while self.code is None and time.monotonic() < end:
            self.look()
            time.sleep(0.5)
        return self.code

    def bury(self) -> list[str]:
        """Kill what has outlived the command by some seconds; return the names of that."""
        left = psutil.wait_procs(self._seen, timeout=5)[1]
        names = [_title(process)[:40] for process in left]
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=5)
        return names

    def last_words(self) -> str:
        """Return the end of what the command has logged."""
        return self._log.read_text(encoding="utf-8", errors="replace")[-_LAST_WORDS:]


def at_work(word: str) -> list[psutil.Process]:
    """Return the processes below this one that have a word in their command line, oldest first.

    Below the command, where it has started Ray itself; else below the raylets of our own cluster.
    """
    found = [one for one in psutil.Process().children(recursive=True) if word in _title(one)]
    return sorted(found, key=lambda process: process.pid)


def _title(process: psutil.Process) -> str:
    try:
        return "".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""
