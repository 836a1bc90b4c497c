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
