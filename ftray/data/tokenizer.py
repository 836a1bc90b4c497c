"""A tokenizer's parts: text to ids with their characters, and the ids around a text."""

import copy
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from ftray.errors import DataError


@dataclass(frozen=True)
class Encoded:
    """A text's ids, and of each the characters that it stands for: [starts, ends)."""

    text: str
    ids: list[int]
    starts: list[int]
    ends: list[int]

    def position(self, character: int) -> int:
        """Return the first token that starts at the character or behind it."""
        return bisect_left(self.starts, character)

    def is_inside_token(self, character: int) -> bool:
        """Say whether one token stands for both the character and the one before it."""
        before = self.position(character) - 1
        return before >= 0 and self.ends[before] > character

    def is_blank(self, position: int) -> bool:
        """Say whether a token stands for nothing but white space."""
        return not self.text[self.starts[position] : self.ends[position]].strip()


def encode(backend: Tokenizer, text: str, cuts: Sequence[int] = ()) -> Encoded:
    """Tokenize a text, each part between cuts alone, and keep the characters of each token."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    for start, end in pairwise([0, *cuts, len(text)]):
        part = backend.encode(text[start:end], add_special_tokens=False)
        ids += part.ids
        offsets += [(start + first, start + last) for first, last in part.offsets]
    return Encoded(text, ids, [start for start, _ in offsets], [end for _, end in offsets])


def bare_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Copy the tokenizer without what it adds around a text.

    That is never wanted here, and its byte-level kind cuts blanks off the offsets: a learned
    newline would be nowhere.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"{tokenizer.name_or_path}: the tokenizer cannot tell which characters a token is from",
            "use a model with a tokenizer.json",
        )
    backend: Tokenizer = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    backend.post_processor = None
    return backend


def start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what the tokenizer puts before every text: bos, or nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("")["input_ids"][:1] == [bos] else []


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that ends a text."""
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"{tokenizer.name_or_path}: the tokenizer has no eos token to learn to stop"
        )
    return int(tokenizer.eos_token_id)
