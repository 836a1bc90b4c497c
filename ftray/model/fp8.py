"""A frozen linear layer in 8-bit floats, for GPUs that multiply them (Hopper and newer).

Both products of a step run in fp8 (e4m3, Micikevicius et al. 2022, arXiv:2209.05433): the forward
one with the weight scaled by output row, the backward one with a transposed copy scaled by input
row, so that each has its scales outside the sum. Together they take what bf16 takes. What is
multiplied with them is cast token by token.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftray.errors import ModelError

FP8 = torch.float8_e4m3fn
_LARGEST = 448.0  # of e4m3
_MULTIPLE = 16  # the GPU's product wants both sizes of a weight to be


class Fp8Linear(nn.Module):
    """x·Wᵀ + bias with W in 8 bits; gradients reach x only."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        forward, backward = rows_in_fp8(weight), rows_in_fp8(weight.t().contiguous())
        self.weight = nn.Parameter(forward.values, requires_grad=False)  # [out, in]
        self.transposed = nn.Parameter(backward.values, requires_grad=False)  # [in, out]
        self.register_buffer("scale", forward.scale)  # [out, 1]
        self.register_buffer("transposed_scale", backward.scale)  # [in, 1]
        self.casts = True
        self.bias = linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out] in the precision of x."""
        if not self.casts:
            return F.linear(x, self.dequantized(x.dtype), self.bias)
        rows = x.reshape(-1, self.in_features)
        cast = rows_in_fp8(rows.detach())
        forward = [self.weight, self.get_buffer("scale")]
        backward = [self.transposed, self.get_buffer("transposed_scale")]
        out: Tensor = _linear(rows, [cast.values, cast.scale], forward, backward)
        out = out.view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in] that the forward product is computed with."""
        return (self.weight.float() * self.get_buffer("scale")).to(dtype)


@contextmanager
def uncast(model: nn.Module) -> Iterator[None]:
    """Multiply fp8 weights with what comes as it comes inside the block: no two of its roundings
    are then some hundredths apart because a product was summed up in another order.
    """
    layers = [module for module in model.modules() if isinstance(module, Fp8Linear)]
    for layer in layers:
        layer.casts = False
    yield
    for layer in layers:
        layer.casts = True


@dataclass(frozen=True)
class Scaled:
    """Rows in 8 bits, and what each is to be multiplied with."""

    values: Tensor  # [rows, width]
    scale: Tensor  # fp32 [rows, 1]


def rows_in_fp8(rows: Tensor) -> Scaled:
    """Scale each row [rows, width] to the range of e4m3, and round it."""
    exact = rows.float()
    largest = exact.abs().amax(-1, keepdim=True).clamp(min=1e-12)
    values = (exact * (_LARGEST / largest)).clamp(-_LARGEST, _LARGEST)
    return Scaled(values.to(FP8), largest / _LARGEST)


@torch.no_grad()
def check_products(layer: Fp8Linear) -> None:
    """Try both products of a layer where it lies: refuse a device on which one is not its own.

    Numbers as small as gradients are. Two roundings of a product are some 4 % of it apart.
    """
    dense = layer.dequantized(torch.float32)
    for wanted, weight, scale in (
        (dense, layer.weight, layer.get_buffer("scale")),
        (dense.t(), layer.transposed, layer.get_buffer("transposed_scale")),
    ):
        rows = torch.randn(64, wanted.shape[1], generator=torch.Generator().manual_seed(0))
        rows = (1e-7 * rows).to(dense.device, torch.bfloat16)
        expected, cast = rows.float() @ wanted.t(), rows_in_fp8(rows)
        found = _multiplied([cast.values, cast.scale], [weight, scale], rows.dtype)
        off = (found.float() - expected).norm() / expected.norm()
        if not off < _ROOM:
            raise ModelError(
                f"adapter.base_precision=fp8: products here are {off:.0%} off what they should be",
                "this device or this torch does not multiply them rightly: set"
                " adapter.base_precision=same",
            )


_ROOM = 0.1


def fits_fp8(linear: nn.Linear) -> bool:
    """Whether a layer's sizes are ones that the GPU's product takes."""
    return linear.in_features % _MULTIPLE == 0 and linear.out_features % _MULTIPLE == 0


def multiplies_fp8(device: torch.device) -> bool:
    """Whether a device has products of fp8 with a scale for each row."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


# Both products are operations of their own to the compiler. In an autograd function torch 2.11
# takes what `_scaled_mm` returns, which has no derivative, for what needs no gradient: its
# tangent becomes zeros. The casts the compiler sees: they are fused with what comes before them,
# and what three layers read is cast once.
@torch.library.custom_op("ftray::fp8_linear", mutates_args=())
def _linear(
    rows: Tensor, cast: list[Tensor], forward: list[Tensor], backward: list[Tensor]
) -> Tensor:
    """rows·Wᵀ: [n, in] → [n, out]. Rows and weights come in 8 bits, each with its scales."""
    return _multiplied(cast, forward, rows.dtype)


@_linear.register_fake
def _(rows: Tensor, cast: list[Tensor], forward: list[Tensor], backward: list[Tensor]) -> Tensor:
    return rows.new_empty((len(rows), len(forward[0])))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[-1])  # the weights alone


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    cast = rows_in_fp8(grad)
    of_rows = _product([cast.values, cast.scale], list(ctx.saved_tensors), grad.dtype)
    return of_rows, *[[None, None]] * 3


_linear.register_autograd(_backward, setup_context=_keep)


@torch.library.custom_op("ftray::fp8_product", mutates_args=())
def _product(cast: list[Tensor], weight: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Rows in 8 bits [n, width] and a weight [out, width] → [n, out]."""
    return _multiplied(cast, weight, dtype)


@_product.register_fake
def _(cast: list[Tensor], weight: list[Tensor], dtype: torch.dtype) -> Tensor:
    return cast[0].new_empty((len(cast[0]), len(weight[0])), dtype=dtype)


def _multiplied(cast: list[Tensor], weight: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Without a GPU in fp32."""
    (rows, row_scale), (matrix, scale) = cast, weight
    if not rows.is_cuda:
        return ((rows.float() * row_scale) @ (matrix.float() * scale).t()).to(dtype)
    out = torch._scaled_mm(
        rows,
        matrix.t(),
        scale_a=row_scale,
        scale_b=scale.t(),
        out_dtype=torch.bfloat16,  # the only one with a scale for each row
        use_fast_accum=True,
    )
    return out.to(dtype)
