"""Processes that belong to one `ftray up`, and how they are ended: those, and only those."""

import os
import signal
import time
from pathlib import Path

import psutil

from ftray.deployment.standing import Standing
from ftray.errors import ClusterError

MARK = "FTRAY_UP"  # the variable by which its processes know each other

_ORDER_SECONDS = 6.0
_GRACE_SECONDS = 6.0
_KILL_SECONDS = 10.0


def end_all(standing: Standing) -> int:
    """Tell the head to end, then all, and kill what is left; return how many that were."""
    head = standing.head
    if head is not None and head.is_alive:
        _signal([psutil.Process(head.pid)], signal.SIGTERM)  # it ends the others in order
        _wait(standing, _ORDER_SECONDS)
    _signal(ours(standing), signal.SIGTERM)
    left = _wait(standing, _GRACE_SECONDS)
    killed = len(left)
    end = time.monotonic() + _KILL_SECONDS
    while left and time.monotonic() < end:
        _signal(left, signal.SIGKILL)
        left = _wait(standing, 1.0)
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        raise ClusterError(f"these processes do not end: {pids}", "ftray down again, or a reboot")
    return killed


def ours(standing: Standing) -> list[psutil.Process]:
    """Return its living processes, but for this one and those that it runs in."""
    me = psutil.Process()
    mine = {me.pid, *(parent.pid for parent in me.parents())}
    head = standing.head
    found = {}
    for process in psutil.process_iter():
        if process.pid not in mine and _is_of(process, standing):
            found[process.pid] = process
    if head is not None and head.is_alive and head.pid not in mine:
        found[head.pid] = psutil.Process(head.pid)
    return list(found.values())


def _is_of(process: psutil.Process, standing: Standing) -> bool:
    """By its environment; Ray's own write their titles over theirs, but do not leave its session.

    Jobs do, and workers may: these log into the folder of Ray's session.
    """
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if process.environ().get(MARK) == standing.mark or _in_session(process, standing):
            return True
    except (psutil.Error, OSError):
        return False  # another user's, or gone
    return any(_output(process.pid, number).startswith(standing.session) for number in (1, 2))


def _in_session(process: psutil.Process, standing: Standing) -> bool:
    """Whether the head is the leader of its session, in the system's sense of the word."""
    head = standing.head
    if head is None or os.getsid(process.pid) != head.pid:
        return False
    return head.keeps_pid or not psutil.pid_exists(head.pid)  # else the number is another's now


def _output(pid: int, number: int) -> str:
    try:
        return os.readlink(Path("/proc", str(pid), "fd", str(number)))
    except OSError:
        return ""  # not Linux, or gone


def _wait(standing: Standing, seconds: float) -> list[psutil.Process]:
    """Return what has not ended by then; one that is ending tells no longer whose it is."""
    end = time.monotonic() + seconds
    left = set(ours(standing))
    while left and time.monotonic() < end:
        time.sleep(0.2)
        left = {one for one in left | set(ours(standing)) if _is_alive(one)}
    return list(left)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)  # not to another one that has its number by now
        except psutil.Error:
            continue
