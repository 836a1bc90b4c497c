"""Adapters of one padded rank over the same layers, side by side in flat tensors."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ftray.model.adapter import PEFT_PREFIX
from ftray.model.lanes import Factors
from ftray.model.lora import first_weights

_BLOCK = 1024


@dataclass(eq=False)
class Adapter:
    """One trial's weights: a row of a stack, which may move while others come and go."""

    rank: int
    scaling: float
    dropout: float
    stack: "Stack"
    row: int
    weights: nn.Parameter  # [1, numbers]: a matrix, since AdamW decays no vectors

    @property
    def parameters(self) -> int:
        """How many numbers are its own, padding left out."""
        return sum(self.rank * (wide + high) for wide, high in self.stack.sizes.values())

    def start(self, seed: int) -> None:
        """Set the weights that a run of this seed starts with."""
        for name, (wide, _) in self.stack.sizes.items():
            a, _ = self.stack.pair(self.weights.detach()[0], name)
            a[: self.rank] = first_weights(self.rank, wide, seed, name)

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Cut numbers that lie as the weights do [numbers] into PEFT's names and shapes."""
        tensors = {}
        for name in self.stack.sizes:
            a, b = self.stack.pair(flat, name)
            tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = a[: self.rank].contiguous()
            tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = b[:, : self.rank].contiguous()
        return tensors

    def flat(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Undo `named`. [numbers]"""
        flat = torch.zeros(self.stack.numbers)
        for name in self.stack.sizes:
            a, b = self.stack.pair(flat, name)
            a[: self.rank] = tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"]
            b[:, : self.rank] = tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"]
        return flat


class Stack:
    """The weights and gradients of some adapters [rows, numbers], and what products take of them.

    `sizes` maps the layers' names to (in, out). Products take the weights in the base's precision:
    a copy that `refresh` brings up to date, or where that is fp32 the weights themselves.
    """

    def __init__(
        self, number: int, rank: int, sizes: dict[str, tuple[int, int]], like: Tensor
    ) -> None:
        self.number, self.rank, self.sizes = number, rank, sizes
        self.members: list[Adapter] = []
        numbers = sum(rank * (wide + high) for wide, high in sizes.values())
        self.numbers = -(-numbers // _BLOCK) * _BLOCK
        self._like = like  # device and precision of the base
        self._starts = self._layout()
        self.weights = self.gradients = self._computed = torch.zeros(0, self.numbers)
        self._allocate(0)

    def add(self, rank: int, scaling: float, dropout: float) -> Adapter:
        """Take in an adapter of zeros; without memory for it the others stay as they are."""
        row = len(self.members)
        try:
            self._allocate(row + 1)
        except torch.OutOfMemoryError:
            self._allocate(row)
            raise
        parameter = nn.Parameter(self.weights[row : row + 1])
        self.members.append(Adapter(rank, scaling, dropout, self, row, parameter))
        self._point()
        return self.members[row]

    def remove(self, member: Adapter) -> None:
        """Let an adapter go, and its memory; the last one takes its row."""
        last = self.members.pop()
        if last is not member:
            self.weights[member.row] = self.weights[last.row]
            self.members[member.row] = last
            last.row = member.row
        self._allocate(len(self.members))

    def refresh(self) -> None:
        """Bring what products take up to date with the weights."""
        if self._computed is not self.weights:
            self._computed.copy_(self.weights)

    def norms(self) -> Tensor:
        """Return the L2 norm of each row's gradient. [rows]"""
        blocks = self.gradients.unflatten(1, (-1, _BLOCK))
        of_blocks = torch.linalg.vector_norm(blocks, dim=2)
        # in two stages: in one, its rounding would be that of 5 of 24 bits
        norms: Tensor = torch.linalg.vector_norm(of_blocks, dim=1)
        return norms

    def factors(self, name: str) -> Factors:
        """Return a layer's share of all members."""
        rows = len(self.members)
        a, b = self.pair(self._computed[:rows], name)
        of_a, of_b = self.pair(self.gradients[:rows], name)
        return Factors(a, b, of_a, of_b)

    def pair(self, flat: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """View a layer's A [..., rank, in] and B [..., out, rank] in numbers [..., numbers]."""
        (wide, high), start, lead = self.sizes[name], self._starts[name], flat.shape[:-1]
        middle, end = start + self.rank * wide, start + self.rank * (wide + high)
        a = flat[..., start:middle].view(*lead, self.rank, wide)
        return a, flat[..., middle:end].view(*lead, high, self.rank)

    def _layout(self) -> dict[str, int]:
        starts, start = {}, 0
        for name, (wide, high) in self.sizes.items():
            starts[name] = start
            start += self.rank * (wide + high)
        return starts

    def _allocate(self, rows: int) -> None:
        """Take memory for so many rows, and keep the members' weights; gradients are zero then.

        What can be made again is given back first, so that never more is held than before or after.
        """
        kept, like = len(self.members), self._like
        self.gradients = self._computed = torch.zeros(0, self.numbers)
        for member in self.members:
            member.weights.grad = None
        weights = torch.zeros(rows, self.numbers, device=like.device)
        weights[:kept] = self.weights[:kept]
        self.weights = weights
        self._point()
        self.gradients = torch.zeros_like(weights)
        self._computed = weights
        if like.dtype != weights.dtype:
            self._computed = torch.empty_like(weights, dtype=like.dtype)
        self._point()

    def _point(self) -> None:
        """Have each member's parameter be its row, wherever that is now."""
        for member in self.members:
            member.weights.data = self.weights[member.row : member.row + 1]
            if len(self.gradients):
                member.weights.grad = self.gradients[member.row : member.row + 1]
