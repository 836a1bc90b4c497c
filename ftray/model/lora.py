"""The stacked-adapter layer: K low-rank adapters beside one frozen linear layer.

One adapter is trained with K = 1, many search trials or many tenants' adapters with K > 1. Which
rows belong to which adapter is said once per forward pass in a `Routing` that all layers share.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftray.model.dropout import RowDropout
from ftray.model.transfer import to_device


@dataclass(frozen=True)
class Slot:
    """Room for one adapter: its rank, the factor on B·A·x, and the dropout on its input."""

    rank: int
    scaling: float
    dropout: float = 0.0


@dataclass(frozen=True)
class Segment:
    """Rows [start, end) of a batch belong to adapter `slot`."""

    slot: int
    start: int
    end: int


class Routing:
    """What all layers need to know about the rows (dim 0) of the batch that passes through them.

    Set it before a forward pass and leave it alone until the backward pass is done: activation
    checkpointing reads it again.
    """

    def __init__(self, device: torch.device) -> None:
        self.segments: tuple[Segment, ...] = ()
        self.row_seeds = torch.zeros(0, dtype=torch.int64, device=device)  # [rows]

    def seed_rows(self, seeds: Sequence[int]) -> None:
        """Give each row the seed in [0, 2⁶³) of its dropout masks."""
        self.row_seeds = to_device(torch.tensor(seeds, dtype=torch.int64), self.row_seeds.device)

    def route(self, segments: Sequence[Segment]) -> None:
        """Say which rows belong to which slot: segments in order, together all rows."""
        self.segments = tuple(segments)


class StackedLoraLinear(nn.Module):
    """base(x) + scaling · B·A·dropout(x) for each row's own A and B (arXiv:2106.09685).

    Ranks may differ by slot: all are padded with zeros to the largest. The padding takes no part
    in any product, so its gradient is zero and it stays zero.
    """

    def __init__(
        self, base: nn.Module, name: str, slots: Sequence[Slot], routing: Routing, seed: int
    ) -> None:
        super().__init__()
        self.base, self.name, self.slots, self.routing = base, name, tuple(slots), routing
        self.in_features, self.out_features = linear_shape(base)
        device, rank = routing.row_seeds.device, max(slot.rank for slot in slots)
        self.lora_A = nn.Parameter(torch.zeros(len(slots), rank, self.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(len(slots), self.out_features, rank, device=device))
        self.dropout = RowDropout(name, [slot.dropout for slot in slots], device)
        self._start(seed)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, ..., in] → [rows, ..., out]; with several slots, rows as the routing says."""
        out: Tensor = self.base(x)
        if len(self.slots) == 1:
            return self._add(out, self.dropout(x, self.routing.row_seeds, 0), 0)
        return torch.cat([self._segment(out, x, segment) for segment in self.routing.segments])

    def _segment(self, out: Tensor, x: Tensor, segment: Segment) -> Tensor:
        rows, slot = slice(segment.start, segment.end), segment.slot
        return self._add(out[rows], self.dropout(x[rows], self.routing.row_seeds[rows], slot), slot)

    def _add(self, out: Tensor, x: Tensor, slot: int) -> Tensor:
        rank, scaling = self.slots[slot].rank, self.slots[slot].scaling
        a = self.lora_A[slot, :rank].to(out.dtype)
        b = self.lora_B[slot, :, :rank].to(out.dtype)
        # `rank` columns are scaled, not `out` of them
        low = F.linear(x.to(out.dtype), a) * scaling  # [rows, ..., rank]
        # a sum that the compiler fuses with what follows; in one call it would copy `out` first
        return out + F.linear(low, b)

    @torch.no_grad()
    def _start(self, seed: int) -> None:
        """Uniform in ±1/√in for A as PEFT does, zero for B; a function of (seed, name, slot)."""
        for index, slot in enumerate(self.slots):
            values = first_weights(slot.rank, self.in_features, seed, self.name, index)
            self.lora_A[index, : slot.rank] = values


def first_weights(rank: int, width: int, seed: int, layer: str, index: int = 0) -> Tensor:
    """The A of a new adapter. [rank, width]"""
    bound = width**-0.5
    digest = hashlib.blake2b(f"{seed} {layer} {index}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.empty(rank, width).uniform_(-bound, bound, generator=generator)


def linear_shape(linear: nn.Module) -> tuple[int, int]:
    """Return (in, out) of an `nn.Linear` or of a layer that replaces one."""
    return int(linear.in_features), int(linear.out_features)  # type: ignore[arg-type]  # Module attribute
