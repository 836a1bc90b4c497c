"""What a host's memory holds: estimated before, measured after."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

from ftray.config.run import RunConfig
from ftray.model.shape import ModelShape
from ftray.train.memory import Worker
from ftray.tune.packed.memory import graph_bytes, host_bytes, slot_bytes
from ftray.tune.packed.trial import Capacity, Trial


@dataclass(frozen=True)
class Footprint:
    """Bytes of a host: the base alone, each slot, all that is held now, and a step on top of that.

    On a GPU what has been there is measured. A CPU's heap hides what is where: there `held` is at
    least what was estimated, and a step is an estimate.
    """

    base: int
    slots: dict[str, int]
    held: int
    step: int


class Usage:
    """Follows a host's memory."""

    def __init__(
        self, base: RunConfig, shape: ModelShape | None, device: torch.device, capacity: Capacity
    ) -> None:
        self._shape, self._device, self._capacity = shape, device, capacity
        self._worker = Worker(
            "gpu" if device.type == "cuda" else "cpu", 1, capacity.memory, "this host"
        )
        self._slots: dict[str, int] = {}
        self._correction = 1.0  # what slots took, as a multiple of their estimate
        self._base = self._measured()
        sizes = (self._worker, capacity.tokens)
        whole = 0 if shape is None else host_bytes(base, shape, *sizes)
        # CUDA's allocator counts what recordings hold as free
        self._graphs = 0 if shape is None else graph_bytes(base, shape, *sizes)
        self._step = max(0, whole - self._graphs - self._base)
        self._is_measured = False

    def footprint(self) -> Footprint:
        """Return the figures as they are now."""
        return Footprint(self._base, dict(self._slots), self._held(), self._step)

    def has_room(self, trial: Trial) -> bool:
        """Whether one more trial fits, in slots and in memory."""
        if len(self._slots) >= self._capacity.slots:
            return False
        most = self._capacity.memory
        step = self._step + self._graphs
        return most is None or self._held() + step + self._expected(trial) <= most

    @contextmanager
    def attaching(self, trial: Trial) -> Iterator[None]:
        """Measure what a trial takes inside the block."""
        expected, before = self._estimate(trial), self._measured()
        yield
        taken = self._measured() - before
        if self._device.type == "cuda" and expected:
            self._correction = max(self._correction, taken / expected)
            self._slots[trial.id] = taken
        else:
            self._slots[trial.id] = expected

    def detached(self, trial_id: str) -> None:
        """Forget a trial."""
        del self._slots[trial_id]

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Measure what a step takes on top of what is held, inside the block."""
        if self._device.type != "cuda":
            yield
            return
        torch.cuda.reset_peak_memory_stats(self._device)
        before = self._measured()
        yield
        peak = torch.cuda.max_memory_allocated(self._device) - before
        self._step = max(self._step, peak) if self._is_measured else peak
        self._is_measured = True

    def _expected(self, trial: Trial) -> int:
        return round(self._estimate(trial) * self._correction)

    def _estimate(self, trial: Trial) -> int:
        if self._shape is None:
            return 0
        return slot_bytes(trial.config, self._shape, self._worker)

    def _held(self) -> int:
        if self._device.type == "cuda":
            return self._measured()
        return max(self._measured(), self._base + sum(self._slots.values()))

    def _measured(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.memory_allocated(self._device))
        return int(psutil.Process(os.getpid()).memory_info().rss)
