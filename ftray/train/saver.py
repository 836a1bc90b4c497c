"""Saves beside training: a step waits while its state is copied, and a thread does the rest."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread

import torch
import torch.distributed as dist
from torch import nn

from ftray import runs
from ftray.errors import StorageError
from ftray.runs import Run
from ftray.storage.patience import SECONDS, patient
from ftray.train import checkpoint
from ftray.train.checkpoint import Progress, State
from ftray.train.parallel import Place
from ftray.train.snapshot import Snapshot

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A published checkpoint."""

    progress: Progress
    folder: str


class Saver:
    """Saves what is trained, on one worker of a group; all of them call it at the same steps.

    The state is copied into host memory, always the same; then training goes on while a thread
    writes, digests and uploads the copy, and the first worker publishes the record. The threads of
    a group talk through a process group of their own: a collective of training never meets one of
    theirs. Only one save is under way: the next one waits for it.
    """

    def __init__(
        self, run: Run, place: Place, attempt: int, keep: int, patience: float = SECONDS
    ) -> None:
        self._run = run
        self._place = place
        self._attempt = attempt
        self._keep = keep
        self._patience = patience
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._snapshot = Snapshot()
        self._under_way: Future[Saved] | None = None
        self._orders: SimpleQueue[tuple[Future[Saved], Callable[[], Saved]] | None] = SimpleQueue()
        # one thread for all saves: clients of object stores are kept by thread. A daemon: where a
        # worker was lost, the others must not wait for it at their end.
        self._thread = Thread(target=self._work, name=f"saver of {run.name}", daemon=True)
        self._thread.start()

    def save(
        self,
        trainable: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        flush: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy the state and begin to write it; what `flush` makes durable is so before the record.

        The save before it must have been waited for.
        """
        began = time.monotonic()
        copied = self._snapshot.take(checkpoint.state_of(trainable, optimizer))
        logger.debug("step %d: copied in %.2f s", progress.step, time.monotonic() - began)
        self._under_way = Future()
        self._orders.put((self._under_way, lambda: self._publish(copied, progress, flush)))

    def wait(self) -> Saved | None:
        """Wait until the save under way is published, and return it once; raises what it met."""
        under_way, self._under_way = self._under_way, None
        return under_way.result() if under_way is not None else None

    def close(self) -> None:
        """Let a save under way end, though not for ever: where a worker was lost it cannot."""
        self._orders.put(None)
        self._thread.join(_LAST_SECONDS)
        if self._thread.is_alive():
            logger.warning("the save that was under way is given up")

    def _work(self) -> None:
        with patient(self._patience):
            while (order := self._orders.get()) is not None:
                future, publish = order
                try:
                    future.set_result(publish())
                except BaseException as error:  # noqa: BLE001  # raised again by wait()
                    future.set_exception(error)

    def _publish(self, copied: State, progress: Progress, flush: Callable[[], None]) -> Saved:
        run, place, began = self._run, self._place, time.monotonic()
        try:
            flush()
            folder = checkpoint.write(run, copied, progress, place, self._attempt, self._group)
            if place.is_first:
                runs.prune(run, self._keep)
        except StorageError as error:
            way_out = "run the same command again: it goes on from the newest checkpoint"
            hint = f"{error.hint}; then {way_out}" if error.hint else way_out
            message = f"step {progress.step} could not be saved: {error.message}"
            raise StorageError(message, hint) from error
        logger.debug("step %d: saved in %.2f s", progress.step, time.monotonic() - began)
        return Saved(progress, folder)


_LAST_SECONDS = 60.0
