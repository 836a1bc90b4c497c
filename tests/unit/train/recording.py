"""Recorders that do again what they were given, where there is no GPU to capture it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Again:
    """Replays by doing the work again, and remembers what it recorded and replayed."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed: list[int] = []

    @contextmanager
    def beside(self) -> Iterator[None]:
        yield

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        number = self.recorded
        self.recorded += 1

        def replay() -> None:
            self.replayed.append(number)
            work()

        return replay


class Unwaiting(Again):
    """Records only what a GPU would not be waited for in."""

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        def watched() -> None:
            with _Unwaiting():
                work()

        return super().__call__(watched)


class _Unwaiting(TorchDispatchMode):
    """Refuses what would wait for a GPU, and so cannot be captured."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket in _WAITING:
            raise RuntimeError(f"{func} waits")
        return func(*args, **(kwargs or {}))


_WAITING = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
