"""States between layers, in the host's memory from the forward pass to the backward pass.

Where layers compute all again, what is left of a batch is one state [rows, length, hidden] for each
of them. They travel while other layers compute, and come back one layer ahead of their use, as in
vDNN (Rhu et al. 2016, arXiv:1602.08124).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class HostStates:
    """Sends away from a device what autograd keeps of one shape, and brings it back in time.

    On the device remain the newest state and the one that is being sent. The host waits for
    nothing. On a CPU the same happens with plain copies.
    """

    def __init__(self, device: torch.device) -> None:
        self._road = _Road(device)
        self._newest: _State | None = None

    @contextmanager
    def keeping(self, shape: torch.Size) -> Iterator[None]:
        """Send away what is kept of this shape inside the block."""

        def pack(kept: Tensor) -> Any:
            is_state = kept.shape == shape and not isinstance(kept, nn.Parameter)
            return self._taken(kept.detach()) if is_state else kept

        try:
            with saved_tensors_hooks(pack, _unpacked):
                yield
        finally:
            self._newest = None  # the graph holds them from here on

    def _taken(self, kept: Tensor) -> "_State":
        before = self._newest
        if before is not None and before.holds(kept):
            return before
        if before is not None:
            before.send()
        self._newest = _State(kept, before, self._road)
        return self._newest


class _Road:
    """Copies between a device and its host, beside what the device computes."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.is_own = device, device.type == "cuda"
        if self.is_own:
            self._stream = torch.cuda.Stream(device)

    def start(self, into: Tensor, source: Tensor) -> torch.cuda.Event | None:
        """Copy when all that was launched so far has run; returns what tells the end of it."""
        if not self.is_own:
            into.copy_(source)
            return None
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            into.copy_(source, non_blocking=True)
        copied: torch.cuda.Event = self._stream.record_event()
        return copied

    def wait(self, copied: torch.cuda.Event | None) -> None:
        """Let what is launched from now on run after a copy."""
        if copied is not None:
            torch.cuda.current_stream(self.device).wait_event(copied)


class _State:
    """One state, here or there or on its way. It holds the one before it, which is needed next."""

    def __init__(self, here: Tensor, before: "_State | None", road: _Road) -> None:
        self._before, self._road = before, road
        self._here: Tensor | None = here
        self._there: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def holds(self, kept: Tensor) -> bool:
        """Whether these are the same numbers in the same place."""
        return self._here is not None and self._here.data_ptr() == kept.data_ptr()

    def send(self) -> None:
        """Start on the way to the host. The one before it has had a layer's time to get there."""
        if self._before is not None:
            self._before.let_go()
        if self._here is not None:
            self._there = torch.empty_like(self._here, device="cpu", pin_memory=self._road.is_own)
            self._copied = self._road.start(self._there, self._here)

    def let_go(self) -> None:
        """Give the device's memory to what is launched from now on."""
        if self._there is not None:
            self._road.wait(self._copied)
            self._here = None

    def fetch(self) -> Tensor:
        """Start on the way back, unless it is here."""
        if self._here is None:
            there = cast(Tensor, self._there)  # it was sent before it was let go
            self._here = torch.empty_like(there, device=self._road.device, pin_memory=False)
            self._copied = self._road.start(self._here, there)
        return self._here

    def back(self) -> Tensor:
        """Return the state on the device, and fetch the one before it."""
        here = self.fetch()
        self._road.wait(self._copied)
        if self._before is not None:
            self._before.fetch()
        return here


def _unpacked(kept: Any) -> Tensor:
    return kept.back() if isinstance(kept, _State) else kept
