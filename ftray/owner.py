"""The process that owns a run or a claim, and whether it lives: a dead driver is known at once."""

import os
import socket
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]  # ships no types


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process of some host. The start time tells it from a later one with the same number."""

    host: str
    pid: int
    started: float  # unix seconds

    @property
    def is_me(self) -> bool:
        """Whether it is the calling process."""
        return (self.host, self.pid) == (_host(), os.getpid())

    @property
    def is_dead(self) -> bool:
        """Whether it surely runs no more; of another host's processes nothing is known."""
        if self.host != _host():
            return False
        try:
            process = psutil.Process(self.pid)
            is_another = abs(process.create_time() - self.started) > 1.0
            return bool(is_another or process.status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False


def this_process() -> Owner:
    """Return the calling process."""
    return Owner(host=_host(), pid=os.getpid(), started=psutil.Process().create_time())


def _host() -> str:
    try:
        # containers may share a host's name but not its process numbers
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""  # not Linux
    return f"{socket.gethostname()} {space}".strip()
