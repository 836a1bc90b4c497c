"""Copies of a training state in host memory, for others to read while training goes on."""

import copy
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class Snapshot:
    """One copy of a state, in the same memory each time: fresh memory costs more than the copy.

    Of a sharded tensor each worker copies its own shard.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, ...], Tensor] = {}
        self._pinned: list[int] = []
        # else other tensors would get the memory while the driver still has it for pinned
        weakref.finalize(self, _unpin, self._pinned).atexit = False

    def take(self, state: dict[str, Any]) -> dict[str, Any]:
        """Copy a state of nested dicts; it overwrites the copy that was taken before."""
        copied = self._copied_dict(state, ())
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # copies into pinned memory may still be under way
        return copied

    def _copied_dict(self, values: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        return {key: self._copied(value, (*path, key)) for key, value in values.items()}

    def _copied(self, value: object, path: tuple[str, ...]) -> object:
        match value:
            case dict():
                return self._copied_dict(value, path)
            case Tensor():
                return self._copied_tensor(value.detach(), path)
            case _:
                return copy.deepcopy(value)

    def _copied_tensor(self, value: Tensor, path: tuple[str, ...]) -> Tensor:
        kept = self._kept.get(path)
        if kept is None:
            kept = self._kept[path] = value.to("cpu", copy=True)
            self._pin(_local(kept))
        else:
            _local(kept).copy_(_local(value), non_blocking=True)
        return kept

    def _pin(self, memory: Tensor) -> None:
        """Let a GPU write into it by itself, which is several times as fast."""
        storage = memory.untyped_storage()
        if torch.cuda.is_available() and storage.nbytes() >= _WORTH_PINNING:
            place, size = storage.data_ptr(), storage.nbytes()
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(place, size, 0))
            self._pinned.append(place)


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _unpin(places: list[int]) -> None:
    for place in places:
        torch.cuda.cudart().cudaHostUnregister(place)


_WORTH_PINNING = 2**16  # bytes
