"""One generation on its way through the engine, and its choices."""

import time
from collections import deque
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ftray.serve.engine.grammar import Grammar, Vocabulary
from ftray.serve.engine.sampler import Draw, generator_of
from ftray.serve.engine.text import AnswerText
from ftray.serve.protocol import Finish, Generation, Piece, Token, TokenLogprob


class Row:
    """One choice: what it was asked, what it has answered, how it draws and shows text."""

    def __init__(self, job: "Job", index: int, tokenizer: Tokenizer, grammar: Grammar | None):
        wish = job.generation
        self.job, self.index = job, index
        self.tokens = list(wish.prompt)
        self.answered = 0
        self.text = AnswerText(tokenizer, wish.stop)
        self.draw = Draw(wish.sampling, generator_of(wish.sampling.seed, index), grammar)

    @property
    def adapter(self) -> str | None:
        """The digest of its adapter."""
        return self.job.generation.adapter

    @property
    def length(self) -> int:
        """Tokens whose keys and values it has when its last token has been computed."""
        return len(self.tokens)

    def take(self, token: int, logprobs: Token | None) -> Piece:
        """Go on by a token; the piece that it makes, with its finish if it is the last."""
        wish = self.job.generation
        if token in self.job.ends:
            return self._piece("", (), "stop")
        self.tokens.append(token)
        self.answered += 1
        self.draw.take(token)
        text, tokens = self.text.add(token), (logprobs or Token(token),)
        if self.text.is_stopped:
            return self._piece(text, tokens, "stop", is_cut=True)
        if self.draw.grammar is not None and self.draw.grammar.is_complete:
            return self._piece(text, tokens, "stop")
        if self.answered == wish.max_tokens:
            return self._piece(text, tokens, "length")
        return self._piece(text, tokens, None)

    def _piece(
        self,
        text: str,
        tokens: tuple[Token, ...],
        finish: Finish | None,
        *,
        is_cut: bool = False,
    ) -> Piece:
        if finish is not None and not is_cut:
            text += self.text.end()
            if self.text.is_stopped:
                finish = "stop"
        return Piece(self.job.generation.id, self.index, text, tokens, finish)


@dataclass(eq=False)
class Job:
    """A generation, the choices that wait for a place, and those that have not ended."""

    generation: Generation
    ends: frozenset[int] = frozenset()  # tokens that end a choice
    waiting: deque[Row] = field(default_factory=deque)
    open: int = 0
    submitted: float = field(default_factory=time.monotonic)

    @property
    def is_late(self) -> bool:
        """Whether its deadline has passed."""
        limit = self.generation.deadline_seconds
        return limit is not None and time.monotonic() - self.submitted > limit

    def starters(self, most: int) -> list[Row]:
        """Waiting choices that can share one prompt: one that has begun goes on by itself."""
        first = self.waiting[0]
        if first.answered:
            return [first]
        return [row for row in self.waiting if not row.answered][:most]


def make_job(
    generation: Generation, tokenizer: Tokenizer, grammar: Grammar | None, ends: frozenset[int]
) -> Job:
    """Prepare all choices; each has a state of its own."""
    job = Job(generation, ends, open=generation.n)
    for index in range(generation.n):
        own = grammar.copy() if grammar is not None else None
        job.waiting.append(Row(job, index, tokenizer, own))
    return job


def describe(token: int, logits: Tensor, alternatives: int, vocabulary: Vocabulary) -> Token:
    """The log-probabilities of a token and of the most probable ones, from logits [vocab]."""
    values = torch.log_softmax(logits.float(), -1)
    chosen = TokenLogprob(token, vocabulary.text(token), float(values[token]))
    if not alternatives:
        return Token(token, chosen)
    best = values.topk(alternatives)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    top = tuple(TokenLogprob(id, vocabulary.text(id), value) for id, value in pairs)
    return Token(token, chosen, top)
