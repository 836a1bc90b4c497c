"""The process that owns a run or a claim, and whether it lives: a dead driver is known at once."""

import os
import socket
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process of some host."""

    host: str
    pid: int

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host.partition(' ')[0]}"  # less its name space

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
            # killed, but its parent has not taken notice
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False


def this_process() -> Owner:
    """Return the calling process."""
    return Owner(host=_host(), pid=os.getpid())


def _host() -> str:
    try:
        # containers may share a host's name but not its process numbers
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""  # not Linux
    return f"{socket.gethostname()} {space}".strip()
