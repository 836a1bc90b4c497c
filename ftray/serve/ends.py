"""Which tokens end an answer: what a model, its tokenizer, its template and a request say."""

import json
from collections.abc import Iterable
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ftray.errors import ModelError
from ftray.serve.protocol import Generation

_ANSWER = "answer"


def end_tokens(named: Iterable[int], tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """What a model's files name, the tokenizer's end, and what ends a turn of a chat."""
    found = {*named, *_ids(tokenizer.eos_token_id)}
    if tokenizer.chat_template:
        found.update(_turn_end(tokenizer))
    return frozenset(found)


def named_ends(folder: Path) -> tuple[int, ...] | None:
    """What a folder's generation config says, else its model's config; None: it has neither."""
    for name in ("generation_config.json", "config.json"):
        if (file := folder / name).exists():
            try:
                tree = json.loads(file.read_text(encoding="utf-8"))
                return tuple(_ids(tree.get("eos_token_id")))
            except (ValueError, AttributeError) as error:
                raise ModelError(f"{file}: cannot be read: {error}") from None
    return None


def ends_of(generation: Generation, base: frozenset[int], vocabulary: int) -> frozenset[int]:
    """Return what ends a generation, of the tokens that the model can write."""
    if generation.ignore_eos:
        return frozenset()
    if generation.stop_ids is None:
        return base
    return frozenset(id for id in generation.stop_ids if id < vocabulary)


def _ids(value: object) -> list[int]:
    """Read what a config or a tokenizer has: one id, several, or none."""
    values = value if isinstance(value, list) else [value]
    return [id for id in values if isinstance(id, int)]


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special token right after an assistant's words, as the chat template writes them."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except (TemplateError, TypeError, ValueError, KeyError):  # a template may refuse any turns
        return []
    rest = text.rpartition(_ANSWER)[2].lstrip()
    special = sorted(tokenizer.all_special_tokens, key=len, reverse=True)
    token = next((token for token in special if token and rest.startswith(token)), None)
    return [] if token is None else [tokenizer.get_vocab()[token]]
