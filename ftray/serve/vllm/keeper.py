"""Runs a command for as long as its own standard input stays open, and ends all of it after that.

A script of its own, of the standard library alone: `python keeper.py SECONDS COMMAND …`. Whoever
starts it holds the other end of the pipe, which the system closes however that process ends,
SIGKILL included; so no server outlives its owner. The command and all that it starts are one
process group: SIGTERM, and SIGKILL after so many seconds. Should the keeper itself be killed, the
kernel kills the command (PR_SET_PDEATHSIG, which is safe here: one thread only).
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 0.2
_LIBC = ctypes.CDLL(None)


def main() -> int:
    """Return the command's exit status, negative for a signal, as subprocess has it."""
    grace, command = float(sys.argv[1]), sys.argv[2:]
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_keeper
    )
    while child.poll() is None and not _is_abandoned():
        pass
    _end_group(child, grace)
    return child.returncode


def _die_with_keeper() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _is_abandoned() -> bool:
    """Wait a little; the pipe becomes readable only when its other end is closed."""
    return bool(select.select([sys.stdin], [], [], _LOOK_SECONDS)[0])


def _end_group(child: "subprocess.Popen[bytes]", grace: float) -> None:
    """Also when the command has ended by itself: its workers may be left."""
    _signal_group(child.pid, signal.SIGTERM)
    end = time.monotonic() + grace
    while time.monotonic() < end and _signal_group(child.pid, 0):
        child.poll()  # or it would stay a zombie of the group
        time.sleep(0.05)
    _signal_group(child.pid, signal.SIGKILL)
    child.wait()


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
