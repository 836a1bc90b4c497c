"""A frozen linear layer kept in 4-bit NormalFloat (Dettmers et al. 2023, arXiv:2305.14314).

Weights are dequantized where they are used, in the forward and again in the backward pass, and
multiplied by our own function. bitsandbytes' `Linear4bit` is not used: on CPUs with AVX512-BF16
it repacks its weight at the first eval-mode forward pass, after which gradients stop silently.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState

BLOCK = 64  # weights that share one scale
STORED = torch.bfloat16  # of which each number is four weights; never computed with
_SCALE_BLOCK = 256  # scales that share one scale of their own, with double quantization


class Nf4Linear(nn.Module):
    """x·Wᵀ + bias with W in 4 bits; gradients reach x only.

    `weight` is [out, in/4], two weights a byte. Its bytes go by the name of a floating point dtype,
    `STORED`, since FSDP2 shards nothing else until torch 2.12; it does so along dim 0. Of a layer
    without its weight (device `meta`) it has none either, nor scales, until `quantize`.
    """

    def __init__(self, linear: nn.Linear, *, double_quantization: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.double_quantization = double_quantization
        self.scales: tuple[str, ...] = ()
        dense = linear.weight.detach()
        if dense.is_meta:
            packed = dense.new_empty(self.out_features, self.in_features // 4, dtype=STORED)
        else:
            packed = self.quantize(dense)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)

    def quantize(self, dense: Tensor) -> Tensor:
        """Take over the scales of a weight [out, in]; returns it packed [out, in/4]."""
        from bitsandbytes.functional import quantize_4bit

        packed, state = quantize_4bit(
            dense,
            blocksize=BLOCK,
            compress_statistics=self.double_quantization,
            quant_type="nf4",
        )
        self.scales = _register(self, state)
        packed_rows: Tensor = packed.view(self.out_features, -1).view(STORED)
        return packed_rows

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out] in the precision of x."""
        scales = [self.get_buffer(name) for name in self.scales]
        out: Tensor = _product(x, self.weight, scales, backward=False)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in] that the products are computed with."""
        return _dequantized(self.weight, [self.get_buffer(name) for name in self.scales], dtype)


def rounded(dense: Tensor, *, double_quantization: bool) -> Tensor:
    """What a weight [out, in] becomes in 4 bits."""
    linear = nn.Linear(dense.shape[1], dense.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(dense, requires_grad=False)
    return Nf4Linear(linear, double_quantization=double_quantization).dequantized(dense.dtype)


def _register(layer: nn.Module, state: "QuantState") -> tuple[str, ...]:
    """Keep what turns packed weights back into numbers as buffers; return the buffers' names."""
    scales = {"absmax": state.absmax}
    if state.state2 is not None:
        scales |= {
            "absmax_offset": state.offset,
            "absmax_absmax": state.state2.absmax,
            "absmax_code": state.state2.code,
        }
    for name, values in scales.items():
        layer.register_buffer(name, values)
    return tuple(scales)


@torch.library.custom_op("ftray::nf4_product", mutates_args=())
def _product(x: Tensor, packed: Tensor, scales: list[Tensor], *, backward: bool) -> Tensor:
    """x·Wᵀ, or x·W in the backward pass.

    To the compiler it is one operation: else it would see that both passes dequantize the same
    weight, and keep that from the one to the other, for as much memory as the whole model in bf16.
    """
    dense = _dequantized(packed, scales, x.dtype)
    return x @ (dense if backward else dense.t())


@_product.register_fake
def _(x: Tensor, packed: Tensor, scales: list[Tensor], *, backward: bool) -> Tensor:
    out, quarter = packed.shape
    return x.new_empty((*x.shape[:-1], 4 * quarter if backward else out))


def _keep(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: Any, output: Tensor) -> None:
    """The packed weight alone, so a step holds no dequantized copy of the model."""
    _, packed, scales = inputs
    ctx.save_for_backward(packed, *scales)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    packed, *scales = ctx.saved_tensors
    return _product(grad, packed, scales, backward=True), None, [None] * len(scales)


# No autograd function: inside of one torch 2.11 forgets what a checkpoint says of its operations.
_product.register_autograd(_backward, setup_context=_keep)


def _dequantized(
    packed: Tensor, scales: list[Tensor] | tuple[Tensor, ...], dtype: torch.dtype
) -> Tensor:
    absmax = scales[0]
    if len(scales) > 1:
        offset, absmax_absmax, code = scales[1:]
        absmax = offset + torch.ops.bitsandbytes.dequantize_blockwise(
            absmax, absmax_absmax, code, _SCALE_BLOCK, torch.float32
        )
    out, quarter = packed.shape
    dense: Tensor = torch.ops.bitsandbytes.dequantize_4bit(
        packed.view(torch.uint8).view(-1, 1), absmax, BLOCK, "nf4", [out, 4 * quarter], dtype
    )
    return dense
