"""Constrained answers: which tokens a grammar allows next, by llguidance."""

from collections import OrderedDict
from collections.abc import Collection

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ftray.errors import ModelError, first_line
from ftray.serve.protocol import RefusedError


class Vocabulary:
    """The tokens of a model as bytes; needs a tokenizer in the `tokenizers` format."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, size: int, ends: Collection[int]
    ) -> None:
        self._known = len(tokenizer)
        self._size = max(size, self._known)
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            kind = type(tokenizer).__name__
            raise ModelError(f"the tokenizer ({kind}) cannot be used", "it has no tokenizer.json")
        self._tokenizer: PreTrainedTokenizerFast = tokenizer
        self._ends = frozenset(ends)
        self._tokens = self._ended_by(self._ends)
        self._others: OrderedDict[frozenset[int], LLTokenizer] = OrderedDict()

    def text(self, token: int) -> bytes:
        """Exactly what a token stands for; nothing for the padding of the output layer."""
        return self._tokens.decode_bytes([token]) if token < self._known else b""

    def grammar(self, grammar: str, ends: frozenset[int]) -> "Grammar":
        """Compile for an answer that these tokens end (none: the model's); may take a second."""
        matcher = LLMatcher(self._tokens_for(ends or self._ends), grammar, log_level=0)
        if matcher.is_error():
            raise RefusedError(
                f"the grammar cannot be compiled: {first_line(ValueError(matcher.get_error()))}",
                code="bad_grammar",
            )
        return Grammar(matcher)

    def _tokens_for(self, ends: frozenset[int]) -> LLTokenizer:
        """A grammar lets an answer end with the tokens that are its tokenizer's ends."""
        if ends == self._ends:
            return self._tokens
        made = self._others.pop(ends, None) or self._ended_by(ends)
        self._others[ends] = made
        while len(self._others) > _OTHERS:
            self._others.popitem(last=False)
        return made

    def _ended_by(self, ends: frozenset[int]) -> LLTokenizer:
        tokens: LLTokenizer = from_tokenizer(self._tokenizer, self._size, sorted(ends) or None)
        return tokens


_OTHERS = 4  # adapters' sets of end tokens that are kept: a tokenizer takes megabytes


class Grammar:
    """How far one answer has come in a grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def copy(self) -> "Grammar":
        """For one more answer, from the same place."""
        return Grammar(self._matcher.deep_copy())

    def forbidden(self, size: int) -> Tensor:
        """[size] True for the tokens that cannot come next."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        bits = np.unpackbits(packed, bitorder="little")[:size]
        forbidden = torch.ones(size, dtype=torch.bool)
        forbidden[: len(bits)] = torch.from_numpy(bits == 0)
        return forbidden

    def take(self, token: int) -> None:
        """Go on by a token."""
        if not self._matcher.consume_token(token):
            reason = first_line(ValueError(self._matcher.get_error()))
            raise RefusedError(f"the grammar got stuck: {reason}", code="bad_grammar")

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow but the end."""
        return bool(self._matcher.is_stopped())
