"""Prompts as token ids: the tokenizer and template of a model, the same that training has used."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ftray.data.rendering.template import ChatTemplate
from ftray.data.rendering.tokenizer import bare_backend, start_ids
from ftray.errors import DataError, ServeError
from ftray.serve.ends import end_tokens

Result = TypeVar("Result")

_SHORT = 4096  # characters: 2 ms of work on one core with SmolLM2's tokenizer


class Prompts:
    """Tokenizers by digest: many adapters ship the same one."""

    def __init__(self, room: int = 32) -> None:
        self._room = room
        self._loads: OrderedDict[str, asyncio.Task[Wording]] = OrderedDict()

    async def wording(self, digest: str, folder: Path) -> "Wording":
        """Return the tokenizer of a folder; loaded once, in a thread. Raises ServeError."""
        load = self._loads.get(digest)
        if load is None:
            load = asyncio.create_task(asyncio.to_thread(_load, folder))
            self._loads[digest] = load
            while len(self._loads) > self._room:
                self._loads.popitem(last=False)
        self._loads.move_to_end(digest)
        try:
            return await asyncio.shield(load)  # others wait for it as well
        except ServeError:
            if self._loads.get(digest) is load:
                del self._loads[digest]
            raise


class Wording:
    """A tokenizer and its chat template; used by several threads at once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend = bare_backend(tokenizer)
        self._start = start_ids(tokenizer)
        self._ends = end_tokens((), tokenizer)
        template = _template(tokenizer)
        self._template = ChatTemplate(template, dict(tokenizer.special_tokens_map))
        self._knows_developer = "developer" in template
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        self.size = 1 + max(vocabulary.values())
        self._longest = max(map(len, vocabulary))

    def stop_ids(self, named: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return what ends an answer, with what the model's configs name; None: the base's ends."""
        return None if named is None else tuple(sorted({*named, *self._ends}))

    @property
    def template(self) -> str:
        """The chat template's source; empty where there is none."""
        return self._template.source

    def render(self, messages: Sequence[dict[str, Any]], tools: list[Any] | None) -> str:
        """Return the text that an answer continues. Raises DataError."""
        if not self._template.source:
            raise DataError("the model has no chat template", "use /v1/completions")
        turns = [self._known_role(message) for message in messages]
        return self._template.render_prompt(turns, tools or None)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a rendered chat, which holds its special tokens already."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_raw(self, text: str) -> list[int]:
        """Return the ids of a text to be continued, begun as the tokenizer begins any text."""
        return [*self._start, *self.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def least_tokens(self, text: str) -> int:
        """Return a number of tokens that a text surely has, without making them."""
        return len(text) // (self._longest * _SHRINKING)

    def _known_role(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["role"] == "developer" and not self._knows_developer:
            return {**message, "role": "system"}
        return message


_SHRINKING = 4  # a normalizer may compose several characters to one


async def in_thread_if_long(size: int, work: Callable[[], Result]) -> Result:
    """Do work on a text of so many characters; the event loop waits for short ones only."""
    return work() if size <= _SHORT else await asyncio.to_thread(work)


def _load(folder: Path) -> Wording:
    try:
        return Wording(AutoTokenizer.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError, KeyError, DataError) as error:
        raise ServeError(
            f"the model's tokenizer cannot be loaded: {type(error).__name__}"
        ) from error


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:  # there is none
        return ""
