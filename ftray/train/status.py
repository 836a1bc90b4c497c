"""The status of a run while its driver works: kept fresh from start to end, and how it ended."""

import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

from ftray import runs
from ftray.errors import StorageError
from ftray.runs import Run, State

logger = logging.getLogger(__name__)

_BEAT_SECONDS = 5.0  # readers call a run lost after 60 s of silence


@contextmanager
def status_kept(run: Run) -> Iterator[None]:
    """Keep the run's heartbeat going, and say how the block ended; `succeeded` is written last.

    It beats from the start: to fetch a model or to make tokens can take hours.
    """
    _set_state(run, "running")
    try:
        with _heartbeat(run):
            yield
    except KeyboardInterrupt:
        _set_state(run, "paused")
        step = max((line["step"] for line in runs.read_metrics(run)), default=0)
        logger.warning("run '%s' is paused after step %d; go on: %s", run.name, step, _command())
        raise
    except BaseException as error:
        try:
            _set_state(run, "failed", str(error))
        except StorageError as away:  # what failed first is what its user has to know
            logger.warning("the run's status cannot be written: %s", away.message)
        raise
    _set_state(run, "succeeded")


@contextmanager
def _heartbeat(run: Run) -> Iterator[None]:
    done = Event()
    heart = Thread(target=_beat, args=(run, done), name=f"heartbeat of {run.name}", daemon=True)
    heart.start()
    try:
        yield
    finally:
        done.set()
        heart.join()


def _beat(run: Run, done: Event) -> None:
    while not done.wait(_BEAT_SECONDS):
        try:
            _set_state(run, "running")
        except StorageError as error:  # the next beat may get through
            logger.warning("the run's status cannot be written: %s", error.message)


def _command() -> str:
    """The command line that began this, where it is ours: the same one goes on with the run."""
    program, *arguments = sys.argv
    is_ours = Path(program).name == "ftray" or Path(program).parts[-2:] == ("ftray", "__main__.py")
    again = [argument for argument in arguments if argument != "--overwrite"]
    return shlex.join(["ftray", *again]) if is_ours else "call it again"


def _set_state(run: Run, state: State, error: str | None = None) -> None:
    runs.change_status(run, lambda status: replace(status, state=state, error=error))
