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
from torch.autograd.function import once_differentiable

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
        scales = self.get_buffer("scale"), self.get_buffer("transposed_scale")
        out: Tensor = _Fp8Product.apply(x, self.weight, self.transposed, *scales)  # type: ignore[no-untyped-call]  # torch
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
        expected = rows.float() @ wanted.t()
        off = (_product(rows, weight, scale).float() - expected).norm() / expected.norm()
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


class _Fp8Product(torch.autograd.Function):
    """x·Wᵀ; keeps the weights alone for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        transposed: Tensor,
        scale: Tensor,
        transposed_scale: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(transposed, transposed_scale)
        return _product(x, weight, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        transposed, transposed_scale = ctx.saved_tensors
        return _product(grad, transposed, transposed_scale), None, None, None, None


def _product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """[..., width] and a weight [rows, width] → [..., rows]; without a GPU in fp32."""
    cast = rows_in_fp8(x.reshape(-1, x.shape[-1]))
    if x.is_cuda:
        flat = torch._scaled_mm(
            cast.values,
            weight.t(),
            scale_a=cast.scale,
            scale_b=scale.t(),
            out_dtype=torch.bfloat16,  # the only one with a scale for each row
            use_fast_accum=True,
        )
    else:
        flat = (cast.values.float() * cast.scale) @ (weight.float() * scale).t()
    return flat.view(*x.shape[:-1], len(weight)).to(x.dtype)
