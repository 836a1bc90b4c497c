"""What layers keep of their forward pass for the backward pass, and what they compute again.

A compiled layer is told by the compiler's own settings: it sees both passes and keeps what is the
least to keep, so a layer's last product is never computed again. Otherwise a layer runs a second
time under autograd's checkpoints (Chen et al. 2016, arXiv:1604.06174), in which some results may be
kept (selective recomputation: Korthikanti et al. 2022, arXiv:2205.05198, section 5).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch._functorch import config as functorch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from ftray.config.run import ActivationPolicy
from ftray.errors import ModelError
from ftray.model import attention, fp8, nf4  # noqa: F401  # they define the operations named below


def keep_activations(
    layers: Sequence[nn.Module], policy: ActivationPolicy, *, compiled: bool
) -> None:
    """Have layers keep what a policy says, and compute the rest again in the backward pass.

    Nothing changes but time and memory: dropout masks are functions of seeds. In eval mode, and
    without gradients, nothing is kept anyway. `offload` is `layer` here: see HostStates.
    """
    if compiled:
        _tell_compiler(policy)
    for layer in layers:
        match policy:
            case "mlp" if compiled:
                _change(_mlp(layer), _recomputed)
            case "mlp":
                _change(_mlp(layer), _without_products)
                _change(layer, _recomputed_but_products)
            case "pointwise" if not compiled:
                _change(layer, _recomputed_but_products)
            case "layer" | "offload" if not compiled:
                _change(layer, _recomputed)


Forward = Callable[..., Any]


def _recomputed(forward: Forward) -> Forward:
    """Keep a module's inputs, and run it again for its gradients."""
    return _twice(forward, partial(checkpoint, use_reentrant=False))


def _recomputed_but_products(forward: Forward) -> Forward:
    """Do so, but keep what products of matrices and attention come to."""
    return _twice(forward, partial(checkpoint, use_reentrant=False, context_fn=_contexts))


def _without_products(forward: Forward) -> Forward:
    """Keep nothing of this part of such a module."""
    return _keeping_nothing()(forward)


def _twice(forward: Forward, run: Forward) -> Forward:
    return lambda module, *args, **told: (
        run(partial(forward, module), *args, **told)
        if module.training and torch.is_grad_enabled()
        else forward(module, *args, **told)
    )


_FLAGS = (
    "ban_recompute_used_far_apart",
    "ban_recompute_long_fusible_chains",
    "ban_recompute_materialized_backward",
)


def _tell_compiler(policy: ActivationPolicy) -> None:
    """Set what the compiler keeps in this whole process.

    By itself it does not compute again what the backward pass must write to memory: the inputs of
    products. Without those three rules what is left is what must not be computed twice: products,
    attention, and operations that it doesn't know.
    """
    budget = 0.0 if policy in ("layer", "offload") else 1.0
    wanted: dict[str, float | bool] = {"activation_memory_budget": budget}
    wanted |= dict.fromkeys(_FLAGS, policy not in ("pointwise", "mlp"))
    if not wanted.items() <= functorch.get_config_copy().items():
        torch.compiler.reset()  # else layers compiled before, for another policy, are taken
        functorch.load_config(wanted)


def _mlp(layer: nn.Module) -> nn.Module:
    try:
        return layer.get_submodule("mlp")
    except AttributeError:
        raise ModelError(
            f"train.activation_checkpointing=mlp: {type(layer).__name__} has no part of that name",
            "set train.activation_checkpointing to pointwise or layer",
        ) from None


def _change(module: nn.Module, how: Callable[[Forward], Forward]) -> None:
    """Give a module a class with another forward pass, as FSDP2 does: names and weights stay."""
    own: Any = type(module)
    module.__class__ = _changed(own, how)


@cache
def _changed(own: Any, how: Callable[[Forward], Forward]) -> Any:
    return type(f"Kept{own.__name__}", (own,), {"forward": how(own.forward)})


_ATEN = torch.ops.aten
_PRODUCTS = (_ATEN.mm.default, _ATEN.addmm.default)
_ALWAYS = (
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
    torch.ops.ftray.documents.default,
    torch.ops.ftray.fp8_linear.default,
    torch.ops.ftray.nf4_product.default,
)
_THIN = 16  # a product as thin as an adapter's is sooner computed than kept: it is as wide as W·x


_keeps_products = ContextVar("_keeps_products", default=True)


@contextmanager
def _keeping_nothing() -> Iterator[None]:
    before = _keeps_products.set(False)
    try:
        yield
    finally:
        _keeps_products.reset(before)


def _contexts() -> Any:
    return create_selective_checkpoint_contexts(lambda _, what, *args, **__: _chosen(what, args))


def _chosen(operation: Any, args: Sequence[Any]) -> CheckpointPolicy:
    is_costly = operation in _ALWAYS or (operation in _PRODUCTS and not _is_thin(*args[-2:]))
    is_kept = is_costly and _keeps_products.get()
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE


def _is_thin(left: torch.Tensor, right: torch.Tensor) -> bool:
    inner, out = right.shape
    return min(inner, out) * _THIN <= max(inner, out)
