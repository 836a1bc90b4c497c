"""Cross-entropy of an output layer, chunk by chunk: its logits are never held together."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_LOGITS_AT_ONCE = 2**26  # 256 MiB in fp32
_IN_HALF = 2  # times as many, compiled: they and their gradient are never there in fp32
# Each chunk reads and writes the sum of the weight's gradients: of a 1.5B model it is one GB.
_WITH_WEIGHT = 4
_TILE = 256  # rows: a GPU multiplies a few more as slowly as so many more


@dataclass(frozen=True)
class Owners:
    """Whose each sequence or label is, as a number below `count`. [rows]"""

    of_rows: Tensor
    count: int


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    owners: Owners | None = None,
    *,
    compiled: bool = False,
) -> Tensor:
    """Sum over rows of the cross-entropy of softmax(hidden·Wᵀ + b): [n, h], [v, h], [v], [n] → [].

    With owners of the rows there is a sum for each, [owners], and no gradient of the weights.
    Logits exist for a chunk of rows at a time. The gradients are computed beside them in the
    forward pass, as in Liger (arXiv:2410.10989, §3.2); compiled, in one kernel that reads a chunk
    twice and writes it once.
    """
    if not torch.is_grad_enabled():  # autograd functions are not told
        hidden, weight = hidden.detach(), weight.detach()
        bias = None if bias is None else bias.detach()
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, labels, _How(owners, compiled))  # type: ignore[no-untyped-call]  # torch
    return loss


@dataclass(frozen=True)
class _How:
    owners: Owners | None
    compiled: bool


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        how: _How,
    ) -> Tensor:
        dtype = _compute_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            sums = _Sums(hidden, weight.to(dtype), bias, ctx.needs_input_grad[:3], how)
            for start in range(0, len(labels), sums.rows):
                sums.add(slice(start, start + sums.rows), labels)
        ctx.save_for_backward(*sums.gradients(hidden, weight, bias))
        ctx.owners = how.owners
        return sums.loss.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, owners = ctx.saved_tensors, ctx.owners
        if owners is not None:
            grad = grad[owners.of_rows, None]  # [n, 1]
        return *[None if g is None else g * grad.to(g.dtype) for g in saved], None, None


class _Sums:
    """Loss and gradients, summed chunk by chunk: the weights' in fp32, the loss in fp64."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        needed: Sequence[bool],
        how: _How,
    ) -> None:
        self.hidden, self.weight, self.bias = hidden.to(weight.dtype), weight, bias
        at_once = _LOGITS_AT_ONCE * (_WITH_WEIGHT if needed[1] else 1)
        if how.compiled and weight.dtype != torch.float32:
            at_once *= _IN_HALF
        rows = max(1, at_once // len(weight))
        self.rows = rows - rows % _TILE if rows > _TILE else rows
        self.entropy = _compiled_entropy() if how.compiled else _entropy
        self.owners = how.owners
        shape = () if how.owners is None else (how.owners.count,)
        self.loss = torch.zeros(shape, dtype=torch.float64, device=hidden.device)
        self.of_hidden = torch.zeros_like(self.hidden) if needed[0] else None
        self.of_weight = torch.zeros_like(weight, dtype=torch.float32) if needed[1] else None
        self.of_bias = torch.zeros(len(weight), device=hidden.device) if needed[2] else None

    def add(self, rows: slice, all_labels: Tensor) -> None:
        hidden, labels = self.hidden[rows], all_labels[rows, None]
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        logits = F.linear(hidden, self.weight, bias)  # [rows, vocab]
        is_needed = any(s is not None for s in (self.of_hidden, self.of_weight, self.of_bias))
        losses, of_logits = self.entropy(logits, labels, of_logits=is_needed)
        if self.owners is None:
            self.loss += losses.sum(dtype=torch.float64)
        else:
            self.loss.index_add_(0, self.owners.of_rows[rows], losses[:, 0].double())
        if of_logits is None:
            return
        if self.of_bias is not None:
            self.of_bias += of_logits.sum(0)
        of_logits = of_logits.to(hidden.dtype)
        if self.of_hidden is not None:
            self.of_hidden[rows] = of_logits @ self.weight
        if self.of_weight is not None:
            self.of_weight += of_logits.t() @ hidden

    def gradients(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        made = ((self.of_hidden, hidden), (self.of_weight, weight), (self.of_bias, bias))
        return tuple(None if g is None or like is None else g.to(like.dtype) for g, like in made)


class Entropy(Protocol):
    """Cross-entropy of logits [rows, vocab] with labels [rows, 1], and the logits' gradient."""

    def __call__(
        self, logits: Tensor, labels: Tensor, *, of_logits: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the losses [rows, 1] in fp32 and, if asked, the gradient of their sum."""


def _entropy(logits: Tensor, labels: Tensor, *, of_logits: bool) -> tuple[Tensor, Tensor | None]:
    logits = logits.float()
    log_sum = logits.logsumexp(-1, keepdim=True)
    losses = log_sum - logits.gather(1, labels)
    if not of_logits:
        return losses, None
    # softmax minus one at the label, in place of the logits
    gradient = logits.sub_(log_sum).exp_()
    gradient.scatter_add_(1, labels, gradient.new_full(labels.shape, -1.0))
    return losses, gradient


def _fusible_entropy(
    logits: Tensor, labels: Tensor, *, of_logits: bool
) -> tuple[Tensor, Tensor | None]:
    """The same for the compiler: no scatter, and the gradient in the logits' precision."""
    exact = logits.float()
    log_sum = exact.logsumexp(-1, keepdim=True)
    losses = log_sum - exact.gather(1, labels)
    if not of_logits:
        return losses, None
    is_label = torch.arange(logits.shape[1], device=logits.device) == labels
    return losses, ((exact - log_sum).exp() - is_label.float()).to(logits.dtype)


@cache
def _compiled_entropy() -> Entropy:
    """Compiled once for all numbers of rows: the last chunk of a batch is shorter.

    The vocabulary's size is known to the compiler: it reads several numbers at a time then.
    """
    compiled = torch.compile(_fusible_entropy)

    def entropy(logits: Tensor, labels: Tensor, *, of_logits: bool) -> tuple[Tensor, Tensor | None]:
        if len(logits) == 1:  # which the compiler takes for another kind of size
            return _fusible_entropy(logits, labels, of_logits=of_logits)
        for one in (logits, labels):
            torch._dynamo.maybe_mark_dynamic(one, 0)
        return compiled(logits, labels, of_logits=of_logits)

    return entropy


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
