"""Recorders that do again what they were given, where there is no GPU to capture it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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


class Refusing(Again):
    """Nothing can be recorded."""

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


class Taped(Again):
    """Records operations on tensors, and does them again on the same memory, as a CUDA graph does.

    Python is not run again, so what it decided stays. What would wait for a GPU is refused.
    """

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        with _Tape() as tape:
            work()
        tape.undo()
        return super().__call__(tape.play)


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._done: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self._made = set[int]()  # memory that is the recording's own
        self._before: dict[
            int, tuple[torch.UntypedStorage, torch.UntypedStorage]
        ] = {}  # what it wrote to other memory

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket in _WAITING:
            raise RuntimeError(f"{func} waits")
        for given, argument in zip(args, func._schema.arguments, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in _tensors(given):
                    self._keep(tensor)
        found = func(*args, **(kwargs or {}))
        read = {_memory(tensor) for tensor in _tensors(args)}
        self._made |= {_memory(tensor) for tensor in _tensors(found)} - read
        self._done.append((func, args, kwargs or {}, found))
        return found

    def _keep(self, tensor: Tensor) -> None:
        if (memory := _memory(tensor)) not in self._made | self._before.keys():
            storage = tensor.untyped_storage()
            self._before[memory] = (storage, storage.clone())

    def undo(self) -> None:
        """A recording does nothing."""
        for storage, before in self._before.values():
            storage.copy_(before)

    def play(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, found in self._done:
                again = func(*args, **kwargs)
                for old, new in zip(_tensors(found), _tensors(again), strict=True):
                    if _memory(old) != _memory(new):
                        old.copy_(new)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


_WAITING = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
