"""Tensors on their way from the host to a device."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the host, and wait for nothing that a GPU has been given to do before.

    A GPU reads pinned memory by itself. From other memory the copy would wait until the GPU is
    idle, which then is without work until the next layers have been launched.
    """
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def overwrite(kept: Tensor, tensor: Tensor) -> None:
    """Copy a tensor from the host into one that is there already, and wait for nothing either."""
    kept.copy_(tensor.pin_memory() if kept.is_cuda else tensor, non_blocking=True)


def kept_on_host(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor's values in the host's memory, as a tensor of `device`, which takes none of its own.

    A GPU reads pinned memory over its bus, in any kernel: some ten times as slowly as its own, so
    this is for tables of which a step reads some rows. Without a GPU it is a plain copy.
    """
    if device.type != "cuda":
        return tensor.to(device, copy=True)
    view: Tensor = torch.as_tensor(_Pinned(tensor), device=device)
    return view.view(tensor.dtype)


class _Pinned:
    """Pinned memory as CUDA's array interface describes it, in numbers of so many bytes."""

    def __init__(self, tensor: Tensor) -> None:
        self._held = tensor.detach().cpu().contiguous().pin_memory()  # for as long as the view
        self.__cuda_array_interface__ = {
            "shape": tuple(tensor.shape),
            "typestr": f"<i{tensor.element_size()}",
            "data": (self._held.data_ptr(), False),
            "version": 2,
        }
