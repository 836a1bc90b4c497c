"""Dropout whose mask is a function of (row seed, layer, element): no state, no order, no rank.

The same row gets the same mask alone or in company, on CPU or GPU, in forward and recomputation.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_WORD = 0xFFFFFFFF
_HALF = 2**31  # words are int32, which vector units multiply: signs are only another name


class RowDropout(nn.Module):
    """Dropout on [rows, ...] with one probability per adapter slot; nothing in eval mode.

    Its layer's word is a tensor: for a number the compiler would compile every layer anew, and
    after some of them no more.
    """

    layer: Tensor

    def __init__(self, layer: str, probabilities: Sequence[float], device: torch.device) -> None:
        super().__init__()
        self.probabilities = tuple(probabilities)
        word = torch.tensor(layer_word(layer), dtype=torch.int32, device=device)
        self.register_buffer("layer", word, persistent=False)

    def forward(self, x: Tensor, row_seeds: Tensor, slot: int) -> Tensor:
        """Drop from rows [rows, ...] that belong to one slot."""
        probability = self.probabilities[slot]
        if not (self.training and probability):
            return x
        return dropped(x, row_seeds, self.layer, probability)


def dropped(x: Tensor, row_seeds: Tensor, layer: Tensor | int, probability: float) -> Tensor:
    """Zero each element with `probability` and scale the rest up to keep the mean."""
    limits = torch.full_like(row_seeds, limit_of(probability))
    return x * kept(x.shape[1:], row_seeds, layer, limits) * (1 / (1 - probability))


def kept(row_shape: torch.Size, row_seeds: Tensor, layer: Tensor | int, limits: Tensor) -> Tensor:
    """Say what `dropped` leaves of rows with a limit each. [rows, ...]"""
    per_row = (-1, *[1] * len(row_shape))
    words = _elements(row_shape.numel(), row_seeds.device).view(row_shape)
    words = _mix(words ^ _keys(row_seeds, layer).view(per_row))
    words ^= -_HALF  # now signed numbers are in the order of the unsigned words
    return words >= (limits - _HALF).to(torch.int32).view(per_row)


def limit_of(probability: float) -> int:
    """The word, of 32 bits, below which an element is dropped."""
    return int(probability * 2**32)


def layer_word(layer: str) -> int:
    """The word, an int32, by which masks of one layer differ from another's."""
    digest = hashlib.blake2b(layer.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big", signed=True)


def _elements(count: int, device: torch.device) -> Tensor:
    """One word for each element of a row. [count]"""
    dtype = torch.int32 if count <= _HALF else torch.int64
    return _mix(torch.arange(count, dtype=dtype, device=device).to(torch.int32))


def _keys(row_seeds: Tensor, layer: Tensor | int) -> Tensor:
    """One word per row from its 63-bit seed and the layer. [rows]"""
    low, high = row_seeds & _WORD, row_seeds >> 32
    words = _mix((low ^ 0x9E3779B9).to(torch.int32))
    return _mix(_mix(words ^ high.to(torch.int32)) ^ layer)


def _mix(words: Tensor) -> Tensor:
    """Replace 32-bit words, in place, so that every input bit reaches every output bit.

    Thomas Mueller's integer hash, https://stackoverflow.com/a/12996028; products wrap.
    """
    for _ in range(2):
        words ^= _upper(words)
        words *= 0x45D9F3B
    words ^= _upper(words)
    return words


def _upper(words: Tensor) -> Tensor:
    upper = words >> 16  # brings copies of the sign with it
    upper &= 0xFFFF
    return upper
