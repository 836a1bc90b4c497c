"""What runs in the process of a training worker, which alone has to import torch."""

import gc

import torch
from ray.train.torch import get_device
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _shutdown_torch,
)

from ftray.errors import OutOfMemoryError, first_line
from ftray.train.loop import train
from ftray.train.retries import Ended
from ftray.train.work import Handover


def join(backend: str, rank: int, size: int, url: str) -> None:
    """Join torch's process group of `size` workers, on the device that is this worker's."""
    gc.freeze()  # what was imported is no garbage, and is not looked through again
    gc.enable()
    _use_own_gpu()
    _set_torch_distributed_env_vars()
    _setup_torch_process_group(backend, rank, size, url)


def leave(size: int) -> None:
    """Leave the process group that `join` has joined."""
    _shutdown_torch(destroy_process_group=size > 1)


def train_given(handover: Handover) -> Ended:
    """Wait for what is to be done, and do it."""
    _use_own_gpu()
    try:
        return train(handover.take())
    except torch.OutOfMemoryError as error:
        # the rest is advice on torch's own settings
        asked = ". ".join(first_line(error).split(". ")[:2])
        raise OutOfMemoryError(
            f"a worker's GPU ran out of memory: {asked}",
            "set train.micro_batch_size=1, train.activation_checkpointing=layer or offload,"
            " or a smaller data.max_length",
        ) from None


def _use_own_gpu() -> None:
    """Make this worker's GPU the current one: of this thread alone, and each begins with the first.

    Workers of one machine see all of its GPUs, so that they reach each other's memory.
    """
    if (device := get_device()).type == "cuda":
        torch.cuda.set_device(device)
