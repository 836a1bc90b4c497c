"""The next token of each row, drawn as its request says and in no way by its company."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ftray.serve.engine.grammar import Grammar
from ftray.serve.protocol import Sampling

_FIRST_LOOK = 1024  # tokens that top_p sorts before it sorts all


@dataclass
class Draw:
    """How one row draws, and what it has drawn."""

    sampling: Sampling
    generator: torch.Generator
    grammar: Grammar | None = None
    counts: Counter[int] = field(default_factory=Counter)  # tokens of the answer

    @property
    def edits(self) -> bool:
        """Whether its logits are changed before anything else."""
        wish = self.sampling
        penalties = wish.presence_penalty or wish.frequency_penalty
        return bool(penalties or wish.logit_bias or self.grammar)

    def take(self, token: int) -> None:
        """Remember a token of the answer."""
        self.counts[token] += 1
        if self.grammar is not None:
            self.grammar.take(token)


def generator_of(seed: int | None, choice: int) -> torch.Generator:
    """A generator of its own for each choice; without a seed another one each time."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
        return generator
    digest = hashlib.blake2b(f"{seed} {choice}".encode(), digest_size=8).digest()
    return generator.manual_seed(int.from_bytes(digest, "big") >> 1)


def choose(logits: Tensor, draws: Sequence[Draw]) -> list[int | None]:
    """One token a row of [rows, vocab]; None for a row whose logits are no numbers.

    All greedy rows are one argmax. A draw takes one uniform number from the row's generator.
    """
    rows = [row for row, draw in enumerate(draws) if draw.edits]
    if rows:
        logits = logits.clone()
        for row in rows:
            _edit(logits[row], draws[row])
    best = logits.max(-1)
    tokens: list[int | None] = best.indices.tolist()
    for row, is_number in enumerate(best.values.isfinite().tolist()):
        if not is_number:
            tokens[row] = None
        elif draws[row].sampling.temperature > 0:
            tokens[row] = _draw(logits[row], draws[row])
    return tokens


def _edit(logits: Tensor, draw: Draw) -> None:
    wish = draw.sampling
    if wish.logit_bias:
        ids, values = _pairs(wish.logit_bias, logits)
        logits[ids] += values
    if (wish.presence_penalty or wish.frequency_penalty) and draw.counts:
        ids, counts = _pairs(draw.counts, logits)
        logits[ids] -= wish.presence_penalty + wish.frequency_penalty * counts
    if draw.grammar is not None:
        logits.masked_fill_(draw.grammar.forbidden(len(logits)).to(logits.device), -torch.inf)


def _pairs(values: Mapping[int, float], like: Tensor) -> tuple[Tensor, Tensor]:
    ids = torch.tensor(list(values), device=like.device)
    return ids, torch.tensor(list(values.values()), dtype=like.dtype, device=like.device)


def _draw(logits: Tensor, draw: Draw) -> int:
    """Invert the distribution's sum in the order of ids: near-equal logits keep their places."""
    wish = draw.sampling
    weights = torch.softmax(logits.float() / wish.temperature, -1)  # [vocab]
    if wish.top_k or wish.top_p < 1:
        weights = weights * _kept(weights, wish)
    if wish.min_p > 0:
        weights = weights * (weights >= wish.min_p * weights.max())
    sums = weights.cumsum(-1, dtype=torch.float64)
    point = float(torch.rand((), generator=draw.generator, dtype=torch.float64))
    drawn = int(torch.searchsorted(sums, sums[-1] * point, right=True))
    return drawn if drawn < len(weights) else int(weights.nonzero()[-1])


def _kept(weights: Tensor, wish: Sampling) -> Tensor:
    """[vocab] True for the tokens that top_k and then top_p leave."""
    vocab = len(weights)
    values, ids = weights.topk(min(wish.top_k or _FIRST_LOOK, vocab))
    if not wish.top_k and float(values.sum()) < wish.top_p:
        values, ids = weights.sort(descending=True)
    if wish.top_p < 1:
        total = float(values.sum()) if wish.top_k else 1.0
        before = values.cumsum(-1) - values
        before[0] = -1.0  # the most probable one always stays
        ids = ids[before < wish.top_p * total]
    kept = torch.zeros(vocab, dtype=torch.bool, device=weights.device)
    kept[ids] = True
    return kept
