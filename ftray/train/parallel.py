"""Data parallelism over a process group: who I am, replicated (DDP) or sharded (FSDP2) models."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from ftray.model.loss import LanguageModel


@dataclass(frozen=True)
class Place:
    """One worker of a training group."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this worker speaks and writes for all."""
        return self.rank == 0


def replicate(parameters: Iterable[Tensor]) -> None:
    """Give every worker the first worker's values: the start of data parallelism.

    What has none yet (device `meta`) each worker reads from the same files later.
    """
    if dist.is_initialized():
        for parameter in parameters:
            if not parameter.is_meta:
                dist.broadcast(parameter.detach(), src=0)


def shard(
    model: LanguageModel, trainable: dict[str, nn.Parameter], compute: torch.dtype | None
) -> None:
    """Shard the model's weights over all workers in place (FSDP2, arXiv:2304.11277).

    A model may have no weights yet (device `meta`): then shards are shapes, to be filled.

    With adapters only the frozen base is sharded: adapters are small, so they stay whole on every
    worker, and their gradients are summed by `sum_gradients`; `compute` is None. With full
    fine-tuning every weight is sharded, gathered in the precision `compute`, and FSDP sums the
    gradients itself, in fp32. Under autocast each layer's copy would live until its backward pass.
    """
    whole = set(trainable.values()) if compute is None else set()
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=compute and torch.float32)
    mesh = init_device_mesh(model.routing.row_seeds.device.type, (dist.get_world_size(),))
    for layer in [*model.layers, model]:
        own = whole & set(layer.parameters())
        # also the outermost: else what lies outside the layers stays whole after an evaluation,
        # and the checkpoint that follows it would not find those weights' moments
        fully_shard(
            layer, mesh=mesh, reshard_after_forward=True, mp_policy=policy, ignored_params=own
        )
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss is already divided by the label tokens of the global batch: sum, no mean.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    for method in ("generate", "check"):
        register_fsdp_forward_method(model, method)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum replicated gradients over all workers, in place, in buckets of at most 64 MiB.

    Gradients accumulate locally over the micro-batches of a step and cross the network once.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    for bucket in _buckets([_gradient(parameter) for parameter in parameters]):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        pieces = flat.split([gradient.numel() for gradient in bucket])
        for gradient, piece in zip(bucket, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))


def total(values: list[float], device: torch.device) -> list[float]:
    """Sum each value over all workers, in fp64."""
    return list(summed(torch.tensor(values, dtype=torch.float64, device=device)).tolist())


def summed(values: Tensor) -> Tensor:
    """Sum a tensor over all workers, in place; a GPU is not waited for."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


_BUCKET_BYTES = 64 * 2**20


def _buckets(gradients: list[Tensor]) -> list[list[Tensor]]:
    buckets: list[list[Tensor]] = []
    room = 0
    for gradient in gradients:
        size = gradient.numel() * gradient.element_size()
        if size > room or buckets[-1][0].dtype != gradient.dtype:
            buckets.append([])
            room = _BUCKET_BYTES
        buckets[-1].append(gradient)
        room -= size
    return buckets


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
