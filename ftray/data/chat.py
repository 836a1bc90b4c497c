"""Rows to token ids and a mask of what is learned, the same ids that serving will see.

How labels come about:
- A conversation's text is tokenized once, as serving does. A token is learned if it lies in an
  assistant turn. Where a token would reach across the start of such a turn, the text is cut there:
  when generating, the prompt ends at that place and is tokenized without what follows.
- The turn's last learned token is what stops generation: the last eos or special token of the turn
  (for ChatML `<|im_end|>`, without the newline behind it), or the one right behind it where
  generation tags leave it out. A template that writes none is refused: such a model never stops.
- Raw completions (`chat_template: none`) are prompt ids + completion ids + eos, each part tokenized
  alone for the same reason; text is learned whole, with eos. Both start as the tokenizer starts a
  text, with bos or without.
- The first token of a row is never learned: there is nothing to predict it from.
"""

import hashlib
import json
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ftray.config.run import DataConfig
from ftray.data.examples import Completion, Conversation, Text, parse_example
from ftray.data.readers import Values
from ftray.data.template import ChatTemplate, RenderedChat
from ftray.data.tokenizer import Encoded, bare_backend, encode, eos_id, start_ids
from ftray.errors import DataError


@dataclass(frozen=True)
class Tokens:
    """One row: its ids, and for each whether it is learned."""

    ids: list[int]
    trained: list[bool]


@dataclass(frozen=True)
class Prompt:
    """What generation starts from, and the answer that the row has for it."""

    ids: list[int]
    answer: str


@dataclass(frozen=True)
class Piece:
    """A stretch of a row's text that is learned as a whole, or not at all."""

    text: str
    trained: bool


class Renderer:
    """Turns rows of the configured format into tokens; picklable, a few MB.

    `digest` covers all that shapes the ids: tokenizer, special tokens and template. `stop_ids` are
    the tokens that end a generated answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> None:
        self.fails_on_bad_rows = data.on_bad_row == "fail"
        self._data = data
        self._backend = bare_backend(tokenizer)
        self._start = start_ids(tokenizer)
        self._eos = eos_id(tokenizer)
        added = tokenizer.added_tokens_decoder.items()
        self._stops = {self._eos, *(index for index, token in added if token.special)}
        self._template = _chat_template(tokenizer, data)
        self.template_digest = self._template.digest
        self.digest = self._digest()
        self.stop_ids = sorted({self._eos, *self._end_of_a_turn()})

    def render(self, row: Values) -> Tokens:
        """Return a row's tokens; DataError says what is wrong with it, not where it is."""
        match parse_example(row, self._data):
            case Conversation() as chat:
                return self._label(self._template.render(chat))
            case Completion(prompt, completion):
                before = self._start + self._encode(prompt)
                return _first_unlearned(before, [*self._encode(completion), self._eos])
            case Text(text):
                return _first_unlearned([], [*self._start, *self._encode(text), self._eos])

    def render_prompt(self, row: Values) -> Prompt:
        """Return what stands before the last assistant turn, ready to be generated from."""
        match parse_example(row, self._data):
            case Conversation(messages, _, tools):
                roles = [message["role"] for message in messages]
                last = len(roles) - 1 - roles[::-1].index("assistant")
                text = self._template.render_prompt(messages[:last], tools)
                return Prompt(self._encode(text), str(messages[last]["content"]))
            case Completion(prompt, completion):
                return Prompt(self._start + self._encode(prompt), completion)
            case Text():
                raise DataError("rows of format 'text' have no prompt to answer")

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids, without special tokens."""
        return self._backend.decode(ids, skip_special_tokens=True)

    def pieces(self, tokens: Tokens) -> list[Piece]:
        """Return a row's text, special tokens included, split where learning starts or ends."""
        pieces, position = [], 0
        for trained, run in groupby(tokens.trained):
            end = position + len(list(run))
            text = self._backend.decode(tokens.ids[position:end], skip_special_tokens=False)
            pieces.append(Piece(text, trained))
            position = end
        return pieces

    def _label(self, chat: RenderedChat) -> Tokens:
        encoded = self._encode_with_cuts(chat)
        trained = [False] * len(encoded.ids)
        for start, end in chat.trained:
            first, last = encoded.position(start), encoded.position(end)
            stop = self._end_of_turn(encoded, first, last)
            if stop is None and chat.is_tagged and self._is_stop(encoded, last):
                stop = last + 1
            if stop is None:
                raise DataError(
                    "the chat template ends the assistant's turn without eos or another special"
                    " token, so the model would never learn to stop",
                    "data.chat_template=PATH of a template with {{ eos_token }} behind the answer",
                )
            trained[first:stop] = [True] * (stop - first)
        trained[0] = False
        if not any(trained):
            raise DataError("nothing in the row is learned", "check the template's generation tags")
        return Tokens(encoded.ids, trained)

    def _encode_with_cuts(self, chat: RenderedChat) -> Encoded:
        encoded = encode(self._backend, chat.text)
        cuts = [start for start, _ in chat.trained if encoded.is_inside_token(start)]
        return encode(self._backend, chat.text, cuts) if cuts else encoded

    def _end_of_turn(self, encoded: Encoded, first: int, last: int) -> int | None:
        """Return the position behind the turn's last stop token if only blanks follow it there."""
        for position in range(last - 1, first - 1, -1):
            if self._is_stop(encoded, position):
                return position + 1
            if not encoded.is_blank(position):
                return None
        return None

    def _is_stop(self, encoded: Encoded, position: int) -> bool:
        return position < len(encoded.ids) and encoded.ids[position] in self._stops

    def _encode(self, text: str) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def _end_of_a_turn(self) -> list[int]:
        """Try the template on the smallest chat, so that what no row can cure is said at once."""
        if not self._template.source:
            return []
        turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
        tokens = self._label(self._template.render(Conversation(turns, [False, True])))
        learned = [
            token for token, trained in zip(tokens.ids, tokens.trained, strict=True) if trained
        ]
        return learned[-1:]

    def _digest(self) -> str:
        parts = [self._backend.to_str(), self._start, sorted(self._stops), self._eos]
        parts += [self._template.source, self._template.special_tokens]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def _first_unlearned(before: list[int], after: list[int]) -> Tokens:
    trained = [False] * len(before) + [True] * len(after)
    trained[0] = False
    return Tokens(before + after, trained)


def _chat_template(tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> ChatTemplate:
    """Return the configured template, an empty one where rows are raw text."""
    special_tokens = dict(tokenizer.special_tokens_map)
    match data.chat_template:
        case _ if data.format == "text":
            return ChatTemplate("", {})
        case "none" if data.format == "messages":
            hint = "set data.chat_template=model, or a path"
            raise DataError("format 'messages' needs a chat template", hint)
        case "none":
            return ChatTemplate("", {})
        case "model":
            return ChatTemplate(_own_template(tokenizer), special_tokens)
        case path:
            return ChatTemplate(_read_template(path), special_tokens)


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:
        raise DataError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template",
            "data.chat_template=PATH of a jinja template, or data.chat_template=none for raw text",
        ) from None


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        hint = "data.chat_template is 'model', 'none' or the path of a jinja template"
        raise DataError(f"{path}: {error.strerror}", hint) from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text") from None
