"""Dropout whose mask is a function of (row seed, layer, element): no state, no order, no rank.

The same row gets the same mask alone or in company, on CPU or GPU, in forward and recomputation.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_WORD = 0xFFFFFFFF  # masks keep 32-bit words inside int64, so that no product can overflow


class RowDropout(nn.Module):
    """Dropout on [rows, ...] with one probability per adapter slot; nothing in eval mode."""

    def __init__(self, layer: str, probabilities: Sequence[float]) -> None:
        super().__init__()
        self.probabilities = tuple(probabilities)
        self.layer = int.from_bytes(hashlib.blake2b(layer.encode(), digest_size=4).digest(), "big")

    def forward(self, x: Tensor, row_seeds: Tensor, slot: int) -> Tensor:
        """Drop from rows [rows, ...] that belong to one slot."""
        probability = self.probabilities[slot]
        if not (self.training and probability):
            return x
        return dropped(x, row_seeds, self.layer, probability)


def dropped(x: Tensor, row_seeds: Tensor, layer: int, probability: float) -> Tensor:
    """Zero each element with `probability` and scale the rest up to keep the mean."""
    row_shape = x.shape[1:]
    elements = torch.arange(row_shape.numel(), device=x.device).view(row_shape)
    words = _mixed(elements & _WORD) ^ _keys(row_seeds, layer).view(-1, *[1] * len(row_shape))
    kept = _mixed(words) >= int(probability * 2**32)  # [rows, ...]
    return x * kept * (1 / (1 - probability))


def _keys(row_seeds: Tensor, layer: int) -> Tensor:
    """One 32-bit word per row from its 63-bit seed and the layer."""
    low, high = row_seeds & _WORD, (row_seeds >> 32) & _WORD
    return _mixed(_mixed(_mixed(low ^ 0x9E3779B9) ^ high) ^ layer)


def _mixed(words: Tensor) -> Tensor:
    """A bijection of 32-bit words in which every input bit reaches every output bit.

    Both multipliers are below 2³¹: products stay inside int64. Thomas Mueller's integer hash,
    https://stackoverflow.com/a/12996028
    """
    words = ((words ^ (words >> 16)) * 0x45D9F3B) & _WORD
    words = ((words ^ (words >> 16)) * 0x45D9F3B) & _WORD
    return words ^ (words >> 16)
