"""Operations that are tried again while storage is full, slow or away; all can be repeated."""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import TypeVar

from ftray.errors import StorageError
from ftray.storage.border import Border, may_pass

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

SECONDS = 120.0  # a full disk is noticed and a store restarted in less, or somebody has to help


@contextmanager
def patient(seconds: float = SECONDS) -> Iterator[None]:
    """Let operations of this thread within the block outlast a full disk or a storage outage.

    Each one is tried again for that long. Elsewhere it fails at once: who waits for an answer at a
    terminal wants to hear what is wrong.
    """
    before = _PATIENCE.set(seconds)
    try:
        yield
    finally:
        _PATIENCE.reset(before)


def tried(action: str, path: str, operation: Callable[[], ResultT]) -> ResultT:
    """Do what may be done twice; its errors come out as StorageError once patience is at an end."""
    end = time.monotonic() + _PATIENCE.get()
    for number in count():
        try:
            with Border(action, path):
                return operation()
        except StorageError as error:
            # half of it is chance, lest all workers come back at once
            pause = min(_LONGEST, _FIRST * 2**number) * random.uniform(0.5, 1.0)
            cause = error.__cause__
            if cause is None or not may_pass(cause) or time.monotonic() + pause > end:
                raise
            logger.warning("%s; trying again in %.1f s", error.message, pause)
            time.sleep(pause)
    raise AssertionError("unreachable")


_FIRST = 0.5  # seconds
_LONGEST = 15.0
_PATIENCE: ContextVar[float] = ContextVar("patience", default=0.0)
