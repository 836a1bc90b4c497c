"""What the stepper needs from a batch of rows, whatever keeps their keys and values."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn
from transformers import Cache

from ftray.serve.engine.job import Row


@dataclass(eq=False)
class Joiner:
    """A prompt that is being computed for one row, and for others that will start like it."""

    row: Row
    followers: list[Row]
    tokens: list[int]
    cache: Cache | None = None
    done: int = 0  # tokens in the cache
    place: int = 0  # its row in the cache
    turn: int = 0  # the step at which it was served last

    @property
    def rows(self) -> list[Row]:
        """All rows that start with it."""
        return [self.row, *self.followers]

    @property
    def filled(self) -> Cache:
        """The cache of a prompt that is done."""
        if self.cache is None:
            raise ValueError("the prompt has not been computed")
        return self.cache

    @property
    def left(self) -> int:
        """Tokens that are still to be computed."""
        return len(self.tokens) - self.done


@dataclass
class Prefilled:
    """What a batch of prompts has led to."""

    joiners: list[Joiner] = field(default_factory=list)  # whose prompts are done
    logits: Tensor | None = None  # [joiners, vocab], after their last tokens


class Batch(Protocol):
    """Running rows, and how they go on by one token."""

    rows: list[Row]

    def fits(self, lengths: Sequence[int]) -> bool:
        """Whether rows of these lengths could run together."""
        ...

    def bytes(self) -> int:
        """Memory of keys and values now."""
        ...

    def prefill(self, joiners: Sequence[Joiner], limit: int) -> Prefilled:
        """Compute at most about `limit` tokens of these prompts, the first ones first."""
        ...

    def join(self, joiner: Joiner) -> None:
        """Let a computed prompt's rows run."""
        ...

    def leave(self, row: Row, *, is_spoilt: bool) -> None:
        """Free a row's place; spoilt: its values are no numbers."""
        ...

    def decode(self) -> Tensor:
        """Compute the last token of each row: logits [rows, vocab]."""
        ...

    def clear(self) -> None:
        """Let all rows leave."""
        ...


class LastHidden:
    """Hands the output layer one place a row, so that prompts make no logits [rows, tokens, vocab].

    A forward pre-hook rather than the model's `logits_to_keep`, which cuts all rows alike.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.ends: Tensor | None = None  # [rows]; None: the last of each
        layer.register_forward_pre_hook(self._cut)

    def _cut(self, layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        hidden = args[0]  # [rows, tokens, width]
        if self.ends is None:
            return (hidden[:, -1:],)
        rows = self.ends.new_tensor(range(len(hidden)))
        return (hidden[rows, self.ends][:, None],)


def pick(joiners: Sequence[Joiner], limit: int) -> list[Joiner]:
    """The prompts to be computed together: whole ones that fit into `limit`, or a part of one."""
    chosen = list(joiners[:1])
    longest = min(chosen[0].left, limit)
    for joiner in joiners[1:]:
        width = max(longest, joiner.left)
        if chosen[0].done or joiner.done or width * (len(chosen) + 1) > limit:
            continue
        chosen.append(joiner)
        longest = width
    return chosen
