"""TensorBoard's event files, written in the caller's thread.

tensorboardX has a thread and a bounded queue for it: when a disk is full the thread ends, and
whoever fills the queue then waits for ever.
"""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from ftray import storage
from ftray.runs import Run
from ftray.storage.patience import tried

logger = logging.getLogger(__name__)


class TensorBoard:
    """Event files under the run's folder: `tensorboard --logdir <root>/runs`.

    Where they cannot be written training goes on without: metrics.jsonl has all of it.
    """

    def __init__(self, run: Run, start: int) -> None:
        self._folder = storage.join(run.folder, "tensorboard")
        # tensorboardX has clients of its own for some stores: we write here, and upload
        is_remote = storage.is_uri(self._folder)
        self._staging = tempfile.TemporaryDirectory() if is_remote else None
        place = self._staging.name if self._staging else self._folder
        self._writer: Any = tried("cannot write", place, lambda: _open(place))
        self._is_whole = True
        again = SessionLog(status=SessionLog.START)
        self._add(Event(step=start + 1, session_log=again))  # hides what came after `start`

    def write(self, line: Mapping[str, int | float | str | None]) -> None:
        """Write each number as a scalar of its step, and each text as a text."""
        for key, value in line.items():
            if value is None or key in ("step", "time"):
                continue
            made = summary.text if isinstance(value, str) else summary.scalar
            self._add(Event(step=int(line["step"] or 0), summary=made(key, value)))

    def flush(self) -> None:
        """Write out the event file."""
        self._try(self._writer.flush)
        if self._staging:
            storage.upload(Path(self._staging.name), self._folder)

    def close(self) -> None:
        """Flush, and let go of the event file."""
        self.flush()
        with suppress(OSError):
            self._writer.close()
        if self._staging:
            self._staging.cleanup()

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        self._try(lambda: self._writer.write_event(event))

    def _try(self, write: Callable[[], None]) -> None:
        if not self._is_whole:
            return
        try:
            write()
        except OSError as error:
            self._is_whole = False  # nothing after half an event can be read
            logger.warning("tensorboard: %s: its curves end here", error.strerror)


def _open(folder: str) -> Any:
    os.makedirs(folder, exist_ok=True)
    return EventsWriter(os.path.join(folder, "events"))
