"""Rows to token ids and a mask of what is learned, the same ids that serving will see.

How labels come about:
- A conversation's text is tokenized once, as serving does. A token is learned if it lies in an
  assistant turn. What stands before the turn has to have the ids of the prompt that serving makes.
- Where it has not, the turn becomes a row of its own: when the template renders it differently once
  more follows, the text ends with it; when a token would reach across its start, the text is cut
  there, since a prompt ends at that place and is tokenized without what follows.
- With `reasoning: mask` a turn's reasoning is read but not learned; its answer is.
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
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from ftray.config.data import DataConfig, sources_of
from ftray.data.reading.parsing import Values
from ftray.data.rendering.encoder import build_encoder
from ftray.data.rendering.examples import Completion, Form, Text, parse_example
from ftray.data.rendering.messages import Conversation
from ftray.data.rendering.rendered import RenderedChat
from ftray.data.rendering.template import ChatTemplate
from ftray.data.rendering.template_source import load_template
from ftray.data.rendering.tokenizer import Encoded, bare_backend, eos_id, start_ids
from ftray.errors import DataError


@dataclass(frozen=True, slots=True)
class Tokens:
    """One row: its ids, and for each a byte that is 1 if it is learned."""

    ids: "Sequence[int]"
    trained: bytes


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
    """Turns rows into tokens; picklable, a few MB.

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
        stops = frozenset({self._eos, *(index for index, token in added if token.special)})
        self._encoder = build_encoder(self._backend, stops)
        self._refusal: DataError | None = None
        ends = self._set_template(tokenizer)
        self.template_digest = self._template.digest
        self.digest = self._digest(stops)
        self.stop_ids = sorted({self._eos, *ends})

    def check(self, form: Form) -> None:
        """Raise what no row of this form can cure, such as a missing chat template."""
        if self._refusal is not None and self._is_chat(form):
            raise self._refusal

    def render(self, row: Values, form: Form) -> list[Tokens]:
        """Return a row's tokens; DataError says what is wrong with it, not where it is.

        It is one row of tokens, or several where the template renders earlier turns differently
        once more follow: each learned turn then has the context that it is generated in.
        """
        [rendered] = self.render_batch([row], form)
        if isinstance(rendered, DataError):
            raise rendered
        return rendered

    def render_batch(self, rows: Sequence[Values], form: Form) -> list[list[Tokens] | DataError]:
        """Render many rows at once, which is faster; an error stands where its row was."""
        drafts = [self._draft(row, form) for row in rows]
        chats = [chat for draft in drafts if isinstance(draft, list) for chat in draft]
        encoded = iter(self._encoder.encode_chats(chats))
        return [
            self._labelled(len(draft), encoded) if isinstance(draft, list) else _single(draft)
            for draft in drafts
        ]

    def render_prompt(self, row: Values, form: Form) -> Prompt:
        """Return what stands before the last assistant turn, ready to be generated from."""
        match parse_example(row, form, self._data):
            case Conversation(messages, _, tools):
                self.check(form)
                roles = [message["role"] for message in messages]
                last = len(roles) - 1 - roles[::-1].index("assistant")
                text = self._template.render_prompt(messages[:last], tools)
                return Prompt(self._encoder.encode(text).tolist(), str(messages[last]["content"]))
            case Completion(prompt, completion):
                return Prompt([*self._start, *self._encoder.encode(prompt)], completion)
            case Text():
                raise DataError("rows of format 'text' have no prompt to answer")

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def pieces(self, tokens: Tokens) -> list[Piece]:
        """Return a row's text, special tokens included, split where learning starts or ends."""
        pieces, position = [], 0
        for trained, run in groupby(tokens.trained):
            end = position + len(list(run))
            text = self._backend.decode(list(tokens.ids[position:end]), skip_special_tokens=False)
            pieces.append(Piece(text, bool(trained)))
            position = end
        return pieces

    def _draft(self, row: Values, form: Form) -> list[RenderedChat] | Tokens | DataError:
        try:
            match parse_example(row, form, self._data):
                case Conversation() as chat:
                    self.check(form)
                    return self._template.render(chat)
                case Completion(prompt, completion):
                    before = self._start + self._encoder.encode(prompt).tolist()
                    rest = self._encoder.encode_rest(completion)
                    return self._closed(array("i", before) + rest, first_learned=len(before))
                case Text(text):
                    ids = array("i", self._start) + self._encoder.encode(text)
                    return self._closed(ids, first_learned=0)
        except DataError as error:
            return error

    def _closed(self, ids: "array[int]", first_learned: int) -> Tokens:
        """Append the id that ends a text; a row's first token is never learned."""
        ids.append(self._eos)
        unlearned = max(first_learned, 1)
        return Tokens(ids, bytes(unlearned) + b"\1" * (len(ids) - unlearned))

    def _labelled(self, count: int, encoded: Iterator[list[Encoded]]) -> list[Tokens] | DataError:
        several = [next(encoded) for _ in range(count)]
        try:
            return [_label(chat) for chats in several for chat in chats]
        except DataError as error:
            return error

    def _is_chat(self, form: Form) -> bool:
        return form.format != "text" and self._data.chat_template != "none"

    def _set_template(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Load the template, and return what ends a turn of the smallest chat.

        So what no row can cure is said at once, or kept for the first source that is chat: with
        plain text a broken template is no fault.
        """
        self._template = ChatTemplate("", {})
        try:
            self._template = load_template(tokenizer, self._data)
            return self._end_of_a_turn() if self._template.source else []
        except DataError as error:
            sources = [*sources_of(self._data.train), *sources_of(self._data.eval)]
            if all(
                (source.format or self._data.format) not in ("auto", "text") for source in sources
            ):
                raise
            self._refusal = error
            return []

    def _end_of_a_turn(self) -> list[int]:
        """Return the last id of a small chat's answer, with reasoning if it takes that."""
        asked = {"role": "user", "content": "Hello"}
        answer = {"role": "assistant", "content": "Hi"}
        reasoned = {**answer, "reasoning_content": "So", "thinking": "So"}
        try:
            [chat] = self._template.render(Conversation([asked, answer], [False, True]))
        except DataError as error:
            try:  # some templates prompt for reasoning, and take only answers with it
                [chat] = self._template.render(Conversation([asked, reasoned], [False, True]))
            except DataError:
                raise error from None
        [encoded] = self._encoder.encode_chats([chat])[0]
        tokens = _label(encoded)
        return [tokens.ids[tokens.trained.rfind(1)]]

    def _digest(self, stops: frozenset[int]) -> str:
        parts = [self._backend.to_str(), self._start, sorted(stops), self._eos]
        parts += [self._template.source, self._template.special_tokens, self._data.reasoning]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def _single(draft: Tokens | DataError) -> list[Tokens] | DataError:
    return [draft] if isinstance(draft, Tokens) else draft


def _label(chat: Encoded) -> Tokens:
    trained = bytearray(len(chat.ids))
    for turn in chat.turns:
        if turn.stop is None:
            raise DataError(
                "the chat template ends the assistant's turn without eos or another special"
                " token, so the model would never learn to stop",
                "data.chat_template=PATH of a template with {{ eos_token }} behind the answer",
            )
        trained[turn.start : turn.stop] = b"\1" * (turn.stop - turn.start)
        first, last = turn.hidden
        trained[first:last] = bytes(last - first)
    trained[:1] = b"\0"  # there is nothing to predict it from
    if 1 not in trained:
        raise DataError("nothing in the row is learned", "check the template's generation tags")
    return Tokens(chat.ids, bytes(trained))
