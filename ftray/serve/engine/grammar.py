"""Constrained answers: which tokens a grammar allows next, by llguidance."""

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
        size = max(size, self._known)
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            kind = type(tokenizer).__name__
            raise ModelError(f"the tokenizer ({kind}) cannot be used", "it has no tokenizer.json")
        self._tokens: LLTokenizer = from_tokenizer(tokenizer, size, sorted(ends))

    def text(self, token: int) -> bytes:
        """Exactly what a token stands for; nothing for the padding of the output layer."""
        return self._tokens.decode_bytes([token]) if token < self._known else b""

    def grammar(self, grammar: str) -> "Grammar":
        """Compile; may take a second, without the interpreter's lock."""
        matcher = LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise RefusedError(
                f"the grammar cannot be compiled: {first_line(ValueError(matcher.get_error()))}",
                code="bad_grammar",
            )
        return Grammar(matcher)


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
