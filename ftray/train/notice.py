"""How workers are told to save and end: by SIGTERM, by a drain notice, or by the driver's file."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

from ray.train.v2._internal.execution.callback import WorkerCallback
from ray.train.v2._internal.execution.context import get_train_context

from ftray import storage
from ftray.errors import StorageError
from ftray.runs import Run

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_REMOTE_LOOK_SECONDS = 5.0  # each look is a request


def ask_to_end(run: Run) -> None:
    """Ask a run's workers, from any process, to save after their step and to end."""
    storage.write(_path(run), b"save and end\n")


def take_back(run: Run) -> None:
    """Let the next workers run on."""
    storage.delete(_path(run))


class Notices:
    """What this worker was told. The workers have to agree before one of them acts on it."""

    def __init__(self, run: Run, *, is_first: bool) -> None:
        self._asked = threading.Event()
        self._closed = threading.Event()
        if is_first:
            name = f"notices of {run.name}"
            threading.Thread(target=self._look, args=(run,), name=name, daemon=True).start()

    @property
    def is_asked(self) -> bool:
        """Whether the driver wants the workers to end."""
        return self._asked.is_set()

    @property
    def is_preempted(self) -> bool:
        """Whether this worker's machine, or one beside it, is about to be taken."""
        # the public get_preemption_info makes all workers wait for each other, at every call
        return _TERMINATED.is_set() or bool(get_train_context().preemption_context.preemption_info)

    def close(self) -> None:
        """Look no more."""
        self._closed.set()

    def _look(self, run: Run) -> None:
        path = _path(run)
        wait = _REMOTE_LOOK_SECONDS if storage.is_uri(path) else _LOOK_SECONDS
        while not self._closed.wait(wait) and not self._asked.is_set():
            try:
                if storage.exists(path):
                    self._asked.set()
            except StorageError as error:  # the next look may get through
                logger.warning("cannot look for notices: %s", error.message)


class HeedSigterm(WorkerCallback):
    """Makes the first SIGTERM to a worker a notice; Ray's own handler would end it at once."""

    def after_init_train_context(self) -> None:
        """Runs in the worker's main thread, which alone may set handlers."""
        before = signal.getsignal(signal.SIGTERM)

        def heed(number: int, frame: FrameType | None) -> Any:
            _TERMINATED.set()
            signal.signal(signal.SIGTERM, before)  # a second one means it

        signal.signal(signal.SIGTERM, heed)


_TERMINATED = threading.Event()


def _path(run: Run) -> str:
    return storage.join(run.folder, "ask")
