"""The status of a search while its driver works: kept fresh, and how it ended."""

import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

from ftray.errors import StorageError
from ftray.searches import Search, SearchStatus, State, change_status, read_status

logger = logging.getLogger(__name__)

_BEAT_SECONDS = 5.0  # readers call a search lost after 60 s of silence


@contextmanager
def kept(search: Search) -> Iterator[None]:
    """Keep a search's heartbeat and clock going; `succeeded` is written last."""
    before, began = read_status(search).seconds, time.monotonic()

    def beat(state: State = "running", error: str | None = None) -> None:
        seconds = before + time.monotonic() - began
        _change(search, lambda now: replace(now, state=state, error=error, seconds=seconds))

    done = Event()
    heart = Thread(target=_beats, args=(beat, done), name="heartbeat", daemon=True)
    heart.start()
    try:
        yield
    except KeyboardInterrupt:
        _stop(done, heart)
        beat("paused")
        ended = read_status(search)
        logger.warning(
            "search '%s' is paused after %d of %d trials; go on: %s",
            search.name,
            ended.trials,
            ended.total_trials,
            _command(),
        )
        raise
    except BaseException as error:
        _stop(done, heart)
        beat("failed", str(error))
        raise
    _stop(done, heart)
    beat("succeeded")


def _beats(beat: Callable[[], None], done: Event) -> None:
    while not done.wait(_BEAT_SECONDS):
        beat()


def _stop(done: Event, heart: Thread) -> None:
    done.set()
    heart.join()


def _change(search: Search, change: Callable[[SearchStatus], SearchStatus]) -> None:
    try:
        change_status(search, change)
    except StorageError as error:  # the next beat may get through
        logger.warning("the search's status cannot be written: %s", error.message)


def _command() -> str:
    """The command line that began this, where it is ours: the same one goes on."""
    program, *arguments = sys.argv
    is_ours = Path(program).name == "ftray" or Path(program).parts[-2:] == ("ftray", "__main__.py")
    again = [argument for argument in arguments if argument != "--overwrite"]
    return shlex.join(["ftray", *again]) if is_ours else "call it again"
