"""A tokenizer's parts: the bare text-to-ids, and the ids around a text."""

import copy
import json
from array import array
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from ftray.errors import DataError


@dataclass(frozen=True, slots=True)
class Encoded:
    """A chat's ids, and of each learned turn where it is: one entry a turn."""

    ids: "array[int]"
    turns: "list[EncodedTurn]"

    def cut(self) -> "Encoded":
        """Return it without what follows the end of its only turn."""
        return Encoded(self.ids[: self.turns[0].stop], self.turns)


@dataclass(frozen=True, slots=True)
class EncodedTurn:
    """Tokens [start, stop) are a turn and the token that ends it; `hidden` are only read.

    `stop` is None where no special token ends the turn.
    """

    start: int
    stop: int | None
    hidden: tuple[int, int]


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


def continuing(backend: Tokenizer) -> Tokenizer:
    """Return a tokenizer for text that goes on: some put a blank before any, which nobody wrote."""
    text = backend.normalizer.normalize_str("x") if backend.normalizer else "x"
    pieces = backend.pre_tokenizer.pre_tokenize_str(text) if backend.pre_tokenizer else [(text, ())]
    if "".join(piece for piece, _ in pieces) == "x":
        return backend
    return Tokenizer.from_str(json.dumps(json.loads(backend.to_str(), object_hook=_unprefixed)))


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


def _unprefixed(part: dict[str, Any]) -> dict[str, Any]:
    """Return a part of a tokenizer's JSON so that it puts nothing before a text."""
    match part.get("type"):
        case "Metaspace":
            return {**part, "prepend_scheme": "never"}
        case "ByteLevel":
            return {**part, "add_prefix_space": False}
        case "Prepend":
            return {**part, "prepend": ""}
    return part
