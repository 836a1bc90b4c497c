"""A chat template, and which characters of its text the assistant wrote.

A template with generation tags says so itself: `{% generation %}…{% endgeneration %}`. For any
other the conversation is rendered up to each assistant turn and up to its end: if these are
prefixes of the whole text, what lies between them is the turn. A template that rewrites earlier
turns has no such prefixes, and is refused.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers.utils.chat_template_utils import render_jinja_template

from ftray.data.examples import Conversation, Message
from ftray.errors import DataError

Span = tuple[int, int]  # characters [start, end)


@dataclass(frozen=True)
class RenderedChat:
    """The text of a conversation, and in it the spans that are learned, in order.

    Where generation tags gave the spans, the token that ends a turn may be right behind its span.
    """

    text: str
    trained: list[Span]
    is_tagged: bool


class ChatTemplate:
    """A jinja template with the special tokens that it may name; a picklable value."""

    def __init__(self, source: str, special_tokens: dict[str, Any]) -> None:
        self.source = source
        self.digest = hashlib.sha256(source.encode()).hexdigest()
        self.special_tokens = special_tokens
        self._is_tagged = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None
        # a date would make the same row another text tomorrow: it is the same day for ever
        self._jinja = (_SAME_DAY if "strftime_now" in source else "") + source

    def render(self, chat: Conversation) -> RenderedChat:
        """Render a conversation; DataError where the learned part cannot be told for sure."""
        self._check_tools(chat)
        if self._is_tagged:
            text, spans = self._apply(chat.messages, chat.tools, tags=True)
            return RenderedChat(text, _of_trained_turns(chat, text, spans), is_tagged=True)
        text, _ = self._apply(chat.messages, chat.tools)
        turns = [index for index, is_trained in enumerate(chat.trained) if is_trained]
        spans = [self._turn_in(text, chat, index) for index in turns]
        return RenderedChat(text, spans, is_tagged=False)

    def render_prompt(self, messages: list[Message], tools: list[Any] | None) -> str:
        """Render turns up to the point where the assistant's answer begins."""
        return self._apply(messages, tools, add_generation_prompt=True)[0]

    def _turn_in(self, text: str, chat: Conversation, index: int) -> Span:
        before = self.render_prompt(chat.messages[:index], chat.tools)
        through, _ = self._apply(chat.messages[: index + 1], chat.tools)
        if not (text.startswith(through) and through.startswith(before)):
            raise DataError(
                f"the chat template renders the first {index + 1} messages differently when more"
                " follow, so the assistant's part cannot be told apart",
                "data.chat_template=PATH of a template with generation tags:"
                " {% generation %}…{% endgeneration %} around what the assistant writes",
            )
        return len(before), len(through)

    def _apply(
        self,
        messages: list[Message],
        tools: list[Any] | None,
        *,
        tags: bool = False,
        add_generation_prompt: bool = False,
    ) -> tuple[str, list[Span]]:
        try:
            rendered: Any = render_jinja_template(  # its annotation names another type
                [messages],
                tools=tools,
                chat_template=self._jinja,
                return_assistant_tokens_mask=tags,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except TemplateSyntaxError as error:
            raise DataError(
                f"the chat template is no valid Jinja: line {error.lineno}: {error.message}",
                "see the file that data.chat_template names, or the one beside the tokenizer",
            ) from None
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise DataError(f"the chat template refuses it: {error}") from None
        [text], spans = rendered
        return text, spans[0] if tags else []

    def _check_tools(self, chat: Conversation) -> None:
        if chat.tools and "tools" not in self.source:
            raise DataError("the chat template knows no 'tools'", "leave them out of the row")
        if "tool_calls" not in self.source and any("tool_calls" in m for m in chat.messages):
            raise DataError("the chat template knows no 'tool_calls'", "leave them out of the row")


# The default date of Llama's own templates, in the two forms that templates ask for.
_SAME_DAY = (
    "{%- macro strftime_now(form) -%}"
    "{{ {'%Y-%m-%d': '2024-07-26'}.get(form, '26 Jul 2024') }}"
    "{%- endmacro %}"
)


def _of_trained_turns(chat: Conversation, text: str, spans: list[Span]) -> list[Span]:
    """Choose the tagged spans of the turns with weight 1."""
    turns = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
    one_each = len(spans) == len(turns)
    for turn, (start, end) in zip(turns, spans, strict=False):
        answer = str(chat.messages[turn]["content"]).strip()
        if one_each and answer not in text[start:end]:
            raise DataError(
                "the chat template's generation tags do not enclose the assistant's answer",
                "put {% generation %} before and {% endgeneration %} behind the message's content",
            )
    if one_each:
        return [spans[order] for order, turn in enumerate(turns) if chat.trained[turn]]
    if any(not chat.trained[turn] for turn in turns):
        raise DataError(
            f"the chat template tags {len(spans)} parts of {len(turns)} assistant turns,"
            " so a turn with weight 0 cannot be told apart"
        )
    return spans
