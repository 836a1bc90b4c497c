"""A process that has imported what jobs' processes need, and forks one for each line that it reads.

To start Python and to import ftray takes half a second of a core, and a job's work no time at all.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from work import main as work


def main() -> None:
    """Each line says where a job's log, process id and exit code go, and what `work` is told."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # none of them is waited for
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        place, arguments, env = json.loads(line)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _supervise(place, arguments, env)
            os._exit(0)


def _supervise(place: str, arguments: Sequence[str], env: Mapping[str, str]) -> None:
    """Lead a group of two processes, as a shell does that runs one command."""
    os.setsid()
    log = os.open(f"{place}.log", os.O_WRONLY | os.O_CREAT)
    for number in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(log, number)
    pid = os.fork()
    if pid == 0:
        os.environ.update(env)
        os._exit(_outcome(arguments))
    _leave(f"{place}.pid", os.getpid())
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    _leave(f"{place}.exit", code if code >= 0 else 128 - code)


def _outcome(arguments: Sequence[str]) -> int:
    try:
        return work(*arguments)
    except Exception:  # noqa: BLE001  # it would go on with what its parent was doing
        traceback.print_exc()
        return 1


def _leave(path: str, number: int) -> None:
    Path(f"{path}.new").write_text(str(number))
    os.replace(f"{path}.new", path)


if __name__ == "__main__":
    main()
