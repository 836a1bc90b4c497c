"""A host: the Ray actor that holds the base model once, and trains its trials in one thread."""

import asyncio
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from ftray.config.base import override
from ftray.config.run import RunConfig
from ftray.errors import FtrayError, first_line
from ftray.storage.patience import patient
from ftray.tune.floor import Figures, Floor
from ftray.tune.packed.intake import Tokens
from ftray.tune.packed.trainer import PackedTrainer
from ftray.tune.packed.trial import Capacity, Trial
from ftray.tune.rungs import Failed, Joined, NoRoom, Rules, Told

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class HostPlan:
    """What a host is told, once, as data."""

    base: RunConfig
    folder: str  # of the base model
    tokens: Tokens
    capacity: Capacity
    rules: Rules
    threads: int
    on_gpu: bool


@dataclass(frozen=True)
class Ready:
    """A host that trains: its process, and how long it took to get there.

    To the loading of the base comes what its imports took; it may have been idle between the two.
    """

    pid: int
    seconds: float


class Host:
    """Takes calls in Ray's event loop, and hands them to the thread that trains."""

    def __init__(self, plan: HostPlan) -> None:
        self._plan = plan
        self._calls: queue.SimpleQueue[Callable[[Floor], None]] = queue.SimpleQueue()
        self._ready: Future[Ready] = Future()
        threading.Thread(target=self._work, name="host", daemon=True).start()

    async def ready(self) -> Ready | Failed:
        """Wait until the base is loaded; a Failed says why it cannot be."""
        try:
            return await asyncio.wrap_future(self._ready)
        except FtrayError as error:
            return Failed(error.message, error.hint)

    async def attach(
        self, trial_id: str, values: dict[str, object], state: str | None
    ) -> Joined | NoRoom | Failed:
        """Give a trial a slot; `values` are what it has different from the search's run."""
        if isinstance(ready := await self.ready(), Failed):
            return ready
        try:
            trial = Trial(trial_id, override(self._plan.base, values))
        except FtrayError as error:
            return Failed(error.message.removeprefix("override: "), error.hint)
        return await self._asked(lambda floor: floor.attach(trial, state))

    async def report(self, trial_id: str) -> Told:
        """Wait for a trial's next report."""
        waiter: Future[Told] = Future()
        await self._asked(lambda floor: floor.expect(trial_id, waiter))
        return await asyncio.wrap_future(waiter)

    async def leave(self, trial_id: str) -> None:
        """Free a trial's slot; one that has none here is fine."""
        await self._asked(lambda floor: floor.leave(trial_id))

    async def figures(self) -> Figures:
        """Return what the host's time went to."""
        return await self._asked(lambda floor: floor.figures())

    async def _asked(self, call: Callable[[Floor], T]) -> T:
        answer: Future[T] = Future()

        def answered(floor: Floor) -> None:
            try:
                answer.set_result(call(floor))
            except Exception as error:  # for who asked; then the host ends by it
                answer.set_exception(error)
                raise

        self._calls.put(answered)
        return await asyncio.wrap_future(answer)

    def _work(self) -> None:
        try:
            with patient():
                floor = self._opened()
                while True:
                    self._answer(floor)
                    floor.turn()
        except FtrayError as error:
            if not self._ready.done():
                self._ready.set_exception(error)  # who attaches hears of it
                return
            self._end(error)
        except Exception as error:  # noqa: BLE001  # a process's edge: what runs on would hang
            self._end(error)

    def _opened(self) -> Floor:
        began, plan = time.monotonic(), self._plan
        torch.set_num_threads(plan.threads)
        device = torch.device("cuda" if plan.on_gpu else "cpu")
        folder = Path(plan.folder)
        trainer = PackedTrainer(plan.base, folder, plan.tokens, device, plan.capacity)
        loading = time.monotonic() - began
        self._ready.set_result(Ready(os.getpid(), max(loading, time.process_time())))
        return Floor(trainer, plan.rules)

    def _answer(self, floor: Floor) -> None:
        """Answer all calls that have come; while no trial has a step to do, wait for one."""
        while True:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                if floor.is_busy:
                    return
                floor.paused()
                call = self._calls.get()
            call(floor)

    def _end(self, error: Exception) -> None:
        """End the process: another host takes its place, and trials go on where they were saved."""
        logger.critical("host ends: %s", first_line(error), exc_info=error)
        if not self._ready.done():
            self._ready.set_exception(error)
        time.sleep(1.0)  # who has asked gets the answer first
        os._exit(1)
