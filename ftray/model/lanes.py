"""Many adapters beside one frozen linear layer: one product with the base for all rows, and two
batched products for each stack of adapters of one rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from ftray.model.base import decoder_layers
from ftray.model.dropout import kept, layer_word
from ftray.model.lora import linear_shape


@dataclass(frozen=True)
class Factors:
    """One layer's share of a stack of adapters, and where their gradients are summed, in fp32.

    Ranks are padded with zeros to the stack's: the padding's gradients are zero, so it stays zero.
    """

    a: Tensor  # [slots, rank, in]
    b: Tensor  # [slots, out, rank]
    of_a: Tensor
    of_b: Tensor


@dataclass(frozen=True)
class RowChances:
    """Dropout of a lane's rows, each with a probability p of its own."""

    seeds: Tensor  # [rows]
    limits: Tensor  # limit_of(p) [rows]
    gains: Tensor  # 1 / (1 − p) [rows]


@dataclass(frozen=True)
class Lane:
    """Rows [start, end) of a batch that take the adapters of one stack.

    They form groups of equal size, which follow each other: group g takes the adapter in
    `slots[g]`. None: there are as many groups as slots, in their order.
    """

    stack: int
    start: int
    end: int
    groups: int
    slots: Tensor | None  # [groups]
    scaling: Tensor  # [groups, 1, 1]
    dropout: RowChances | None = None


class Lanes:
    """What all layers need to know about the batch that passes through them.

    Set it before a forward pass and leave it alone until the backward pass is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.rows = 0
        self.lanes: tuple[Lane, ...] = ()
        # connects what has no trained input with the graph: gradients of adapters bypass it
        self.anchor = torch.zeros((), device=device, requires_grad=True)

    def set(self, rows: int, lanes: Sequence[Lane]) -> None:
        """Say which rows take which adapters; those in no lane take none."""
        self.rows, self.lanes = rows, tuple(lanes)


class LaneLinear(nn.Module):
    """base(x) + scaling · B·A·dropout(x) with each row's own A and B (arXiv:2106.09685).

    The gradients of A and B are added where `factors` say so. No row's numbers reach another's.
    """

    def __init__(self, base: nn.Module, name: str, routing: Lanes) -> None:
        super().__init__()
        self.base, self.name, self.routing = base, name, routing
        self.in_features, self.out_features = linear_shape(base)
        self.factors: dict[int, Factors] = {}  # by stack
        self._word = layer_word(name)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch
    def forward(self, x: Tensor) -> Tensor:
        """[rows, ..., in] → [rows, ..., out]."""
        flat, routing = x.flatten(0, -2), self.routing  # [tokens, in]
        parts = [
            _Part(lane, self.factors[lane.stack], x.shape[1:-1].numel())
            for lane in routing.lanes
            if lane.stack in self.factors
        ]
        if not parts:
            return self._shaped(self.base(flat), x)
        masks = [self._mask(part.lane, x.shape[1:]) for part in parts]
        added = _Parts(parts, [])
        of_base = _Joined.apply(flat, added) if flat.requires_grad else flat  # type: ignore[no-untyped-call]  # torch
        out = self.base(of_base)  # never a view, so it can be added to in place
        out = _Added.apply(out, flat, routing.anchor, added, *masks)  # type: ignore[no-untyped-call]  # torch
        return self._shaped(out, x)

    def _shaped(self, out: Tensor, x: Tensor) -> Tensor:
        return out.view(*x.shape[:-1], self.out_features)

    def _mask(self, lane: Lane, row_shape: torch.Size) -> Tensor | None:
        chances = lane.dropout
        if chances is None or not self.training:
            return None
        return kept(row_shape, chances.seeds, self._word, chances.limits)


def compile_between(model: PreTrainedModel) -> None:
    """Have what lies between the layers' products compiled: norms, rotations, activations.

    For any number of rows and any length, since trials come and go. The products stay as they are:
    who takes part in them is known from one step to the next only.
    """
    for layer in decoder_layers(model):
        layer.compile(dynamic=True)


@dataclass(frozen=True)
class _Part:
    """What one lane adds in one layer."""

    lane: Lane
    factors: Factors
    per_row: int  # tokens

    def of(self, tokens: Tensor) -> Tensor:
        """Return the lane's tokens [all, width] by group. [groups, tokens, width]"""
        span = slice(self.lane.start * self.per_row, self.lane.end * self.per_row)
        return tokens[span].view(self.lane.groups, -1, tokens.shape[-1])

    def a(self) -> Tensor:
        """[groups, rank, in]."""
        slots = self.lane.slots
        return self.factors.a if slots is None else self.factors.a[slots]

    def b(self) -> Tensor:
        """[groups, out, rank]."""
        slots = self.lane.slots
        return self.factors.b if slots is None else self.factors.b[slots]

    def dropped(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Drop from the tokens of `of`; the same again of a gradient."""
        chances = self.lane.dropout
        if mask is None or chances is None:
            return tokens
        rows = tokens.view(len(mask), -1) * mask.view(len(mask), -1)
        return (rows * chances.gains[:, None]).to(tokens.dtype).view_as(tokens)


@dataclass(frozen=True)
class _Gradient:
    """What a part has to add to its input's gradient: of_low · A."""

    part: _Part
    of_low: Tensor  # [groups, tokens, rank]
    mask: Tensor | None

    def add_to(self, of_x: Tensor) -> None:
        """Add it to the gradient of all tokens. [tokens, in]"""
        mine, a = self.part.of(of_x), self.part.a()
        if self.mask is None:
            mine.baddbmm_(self.of_low, a)
        else:
            mine += self.part.dropped(torch.bmm(self.of_low, a), self.mask)


@dataclass(frozen=True)
class _Parts:
    """What all lanes add in one layer, and in the backward pass to its input's gradient."""

    parts: list[_Part]
    gradients: list[_Gradient]


class _Added(torch.autograd.Function):
    """out += scaling · B·A·dropout(x) in place. The gradient of x is left to `_Joined`."""

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, x: Tensor, anchor: Tensor, added: _Parts, *masks: Tensor | None
    ) -> Tensor:
        lows = []
        for part, mask in zip(added.parts, masks, strict=True):
            low = torch.bmm(part.dropped(part.of(x), mask), part.a().transpose(1, 2))
            low.mul_(part.lane.scaling)  # [groups, tokens, rank]
            part.of(out).baddbmm_(low, part.b().transpose(1, 2))
            lows.append(low)
        ctx.mark_dirty(out)
        ctx.save_for_backward(x, *lows, *masks)  # nothing else, lest recomputation save no memory
        ctx.added = added
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        parts = ctx.added.parts
        lows, masks = saved[: len(parts)], saved[len(parts) :]
        of_out = of_out.contiguous()
        for part, low, mask in zip(parts, lows, masks, strict=True):
            mine, slots = part.of(of_out), part.lane.slots
            of_low = torch.bmm(mine, part.b()).mul_(part.lane.scaling)
            _add(part.factors.of_b, mine.transpose(1, 2), low, slots)
            _add(part.factors.of_a, of_low.transpose(1, 2), part.dropped(part.of(x), mask), slots)
            if ctx.needs_input_grad[1]:
                ctx.added.gradients.append(_Gradient(part, of_low, mask))
        return of_out, None, None, None, *[None] * len(masks)


class _Joined(torch.autograd.Function):
    """The base's input. Its gradient is added to in place, which spares five passes over memory
    against a sum of two gradients: at 8B and 8,192 tokens about a twentieth of a step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, added: _Parts) -> Tensor:
        ctx.added = added
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_x: Tensor) -> tuple[Tensor | None, ...]:
        of_x = of_x.contiguous()  # the base's product has just made it: nobody else has it
        while ctx.added.gradients:
            ctx.added.gradients.pop().add_to(of_x)
        return of_x, None


def _add(sums: Tensor, left: Tensor, right: Tensor, slots: Tensor | None) -> None:
    """sums[slots] += left · right."""
    if slots is None and sums.dtype == left.dtype:
        sums.baddbmm_(left, right)
    elif slots is None:
        sums += torch.bmm(left, right)
    else:
        sums.index_add_(0, slots, torch.bmm(left, right).to(sums.dtype))
