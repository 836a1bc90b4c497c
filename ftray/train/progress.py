"""What a person sees while a run trains: a bar, evaluations and notes."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ftray import runs, storage
from ftray.errors import StorageError, first_line
from ftray.runs import Run

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_REMOTE_LOOK_SECONDS = 10.0  # an object store is asked for the whole file
_NOTE_SECONDS = 5.0


@contextlib.contextmanager
def watched(run: Run, total_steps: int) -> Iterator[None]:
    """Show the run's progress on stderr, and its step in its status, while the block runs."""
    watcher = _Watcher(run, total_steps)
    watcher.start()
    try:
        yield
    finally:
        watcher.finish()


class _Watcher(threading.Thread):
    """Follows the files that the first worker writes: driver and workers share no channel."""

    def __init__(self, run: Run, total_steps: int) -> None:
        super().__init__(name=f"progress of {run.name}", daemon=True)
        self._run = run
        self._total = total_steps
        self._done = threading.Event()
        self._metrics = _Lines(storage.join(run.folder, "metrics.jsonl"))
        self._notes = _Lines(storage.join(run.folder, "train.log"))
        self._step = 0
        self._noted_at = 0.0
        # what an earlier attempt has measured was shown then
        lines = runs.read_metrics(run)
        self._evaluated = max((line["step"] for line in lines if "eval_loss" in line), default=0)
        self._notes.new()

    def run(self) -> None:
        """Look and show until told to finish, then once more."""
        wait = _REMOTE_LOOK_SECONDS if storage.is_uri(self._run.folder) else _LOOK_SECONDS
        with _bar() as bar:
            task = bar.add_task(self._run.name, total=self._total, numbers="starting workers")
            while not self._done.wait(wait):
                self._look(bar, task)
            self._noted_at = 0.0
            self._look(bar, task)

    def finish(self) -> None:
        """Show what came last, and stop."""
        self._done.set()
        self.join()

    def _look(self, bar: Progress, task: TaskID) -> None:
        try:
            self._show(bar, task)
            if time.monotonic() - self._noted_at > _NOTE_SECONDS:
                self._note_step()
        except (StorageError, OSError) as error:  # the next look may get through
            logger.warning("progress cannot be shown: %s", first_line(error))

    def _show(self, bar: Progress, task: TaskID) -> None:
        for note in self._notes.new():
            bar.console.print(f"  {note}", highlight=False, markup=False)
        for text in self._metrics.new():
            line = runs.parsed(text)
            if line is None:
                continue
            if "loss" in line:
                self._step = line["step"]
                bar.update(task, completed=self._step, numbers=_numbers(line))
            elif "eval_loss" in line and line["step"] > self._evaluated:
                self._evaluated = line["step"]
                bar.console.print(_evaluation(line), highlight=False, markup=False)

    def _note_step(self) -> None:
        self._noted_at = time.monotonic()
        step, total = self._step, self._total
        runs.change_status(self._run, lambda status: replace(status, step=step, total_steps=total))


class _Lines:
    """The whole lines that a file has got since the last look; a file that shrank starts anew."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen = 0

    def new(self) -> list[str]:
        data = self._unseen()
        end = data.rfind(b"\n") + 1
        self._seen += end
        return data[:end].decode("utf-8", "replace").splitlines()

    def _unseen(self) -> bytes:
        if storage.is_uri(self._path):
            data = storage.read_if_exists(self._path) or b""
            self._seen = self._seen if self._seen <= len(data) else 0
            return data[self._seen :]
        if not os.path.exists(self._path):
            return b""
        with open(self._path, "rb") as file:  # read on from there: the file may be long
            if file.seek(0, os.SEEK_END) < self._seen:
                self._seen = 0
            file.seek(self._seen)
            return file.read()


def _bar() -> Progress:
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
    ]
    return Progress(*columns, console=Console(stderr=True))


def _numbers(line: dict[str, Any]) -> str:
    return f"loss {line['loss']:.4f}  {line['tokens_per_second']:,.0f} tokens/s"


def _evaluation(line: dict[str, Any]) -> str:
    text = f"  step {line['step']}: eval loss {line['eval_loss']:.4f}"
    text += f", perplexity {line['perplexity']:.2f}"
    samples = "".join(f"\n    {row}" for row in line.get("samples", "").splitlines())
    return text + samples
