"""A frozen linear layer in 8-bit integers, for serving: weights by output, inputs by token.

Vector-wise quantization (Dettmers et al. 2022, arXiv:2208.07339, section 2.1) without the paper's
outlier columns: which columns those are depends on all rows of a batch, so that a row's result
would vary with its company. Here each row has a scale of its own, and sums of integers are exact.
What a whole model answers may still vary: the last bit of another layer can turn a rounding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LARGEST = 127.0
_FEWEST_ROWS = 32  # a GPU's product wants more than 16, in eights


class Int8Linear(nn.Module):
    """x·Wᵀ + bias with W and x in 8 bits; nothing has a gradient."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        values, scale = rows_in_int8(linear.weight.detach())
        self.weight = nn.Parameter(values, requires_grad=False)  # [out, in]
        self.register_buffer("scale", scale.squeeze(1))  # fp32 [out]
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out] in the precision of x."""
        values, scale = rows_in_int8(x.reshape(-1, self.in_features))
        sums = _multiplied(values, self.weight)
        out = (sums.float() * scale * self.get_buffer("scale")).to(x.dtype)
        out = out if self.bias is None else out + self.bias
        return out.view(*x.shape[:-1], self.out_features)


def rows_in_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Scale each row [n, width] to ±127 and round it; with fp32 scales [n, 1] to undo it."""
    exact = rows.float()
    scale = exact.abs().amax(-1, keepdim=True).clamp(min=1e-12) / _LARGEST
    return (exact / scale).round().to(torch.int8), scale


def fits_int8(linear: nn.Linear) -> bool:
    """Whether a layer's sizes are ones that a GPU's product takes."""
    return linear.in_features % 8 == 0 and linear.out_features % 8 == 0


def _multiplied(rows: Tensor, weight: Tensor) -> Tensor:
    """[n, in] · [out, in]ᵀ → int32 [n, out]."""
    if not rows.is_cuda:
        return torch._int_mm(rows, weight.t())
    missing = max(_FEWEST_ROWS, -(-len(rows) // 8) * 8) - len(rows)
    return torch._int_mm(F.pad(rows, (0, 0, 0, missing)), weight.t())[: len(rows)]
