"""A chat template, and which characters of its text the assistant wrote.

A template with generation tags says so itself: `{% generation %}…{% endgeneration %}`. For any
other the conversation is rendered up to each assistant turn and up to its end: if these are
prefixes of the whole text, what lies between them is the turn. Some templates render a turn
differently once more follows (Qwen3 leaves out the reasoning of earlier answers). Such a turn is
learned in a text of its own that ends with it, which is what the model sees when it writes it.
"""

import hashlib
import re
from functools import lru_cache
from operator import itemgetter
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from ftray.data.rendering.call_form import CallForm, find_call_form
from ftray.data.rendering.messages import Conversation, Message
from ftray.data.rendering.reasoning import leaves_out_reasoning, reasoning_in
from ftray.data.rendering.rendered import RenderedChat, Turn
from ftray.errors import DataError


class ChatTemplate:
    """A jinja template with the special tokens that it may name; a picklable value."""

    def __init__(
        self, source: str, special_tokens: dict[str, Any], *, hides_reasoning: bool = False
    ) -> None:
        self.source = source
        self.digest = hashlib.sha256(source.encode()).hexdigest()
        self.special_tokens = special_tokens
        self._hides_reasoning = hides_reasoning
        self._is_tagged = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None
        # a date would make the same row another text tomorrow: it is the same day for ever
        self._jinja = (_SAME_DAY if "strftime_now" in source else "") + source
        self._calls: CallForm | None = None

    def render(self, chat: Conversation) -> list[RenderedChat]:
        """Render a conversation; DataError where the learned part cannot be told for sure.

        Each learned turn is in exactly one of the texts, and what stands before it there is what
        the model is prompted with.
        """
        messages = self._readable(chat.messages, chat.tools)
        chat = Conversation(messages, chat.trained, chat.tools)
        if self._is_tagged:
            return [self._render_tagged(chat)]
        last = len(chat.messages) - 1
        text = self._apply(messages, chat.tools)
        parts = {
            index: text if index == last else self._apply(messages[: index + 1], chat.tools)
            for index, is_trained in enumerate(chat.trained)
            if is_trained
        }
        turns = {index: self._turn_at_end(part, chat, index) for index, part in parts.items()}
        found: list[tuple[int, RenderedChat]] = []
        while turns:
            inside = [index for index in turns if text.startswith(parts[index])]
            learned = [turns.pop(index) for index in inside]
            if learned:
                found.append((inside[0], RenderedChat(text, learned, is_tagged=False)))
            if turns:
                text = parts[max(turns)]
        return [rendered for _, rendered in sorted(found, key=itemgetter(0))]

    def render_prompt(self, messages: list[Message], tools: list[Any] | None) -> str:
        """Render turns up to the point where the assistant's answer begins."""
        return self._prompt(self._readable(messages, tools), tools)

    def _prompt(self, messages: list[Message], tools: list[Any] | None) -> str:
        return self._apply(messages, tools, add_generation_prompt=True)

    def _turn_at_end(self, text: str, chat: Conversation, index: int) -> Turn:
        before = self._prompt(chat.messages[:index], chat.tools)
        if not text.startswith(before):
            raise DataError(
                f"the chat template does not write what it prompts for (message {index + 1}),"
                " so the assistant's part cannot be told apart",
                "it may want 'reasoning_content' with each answer; or data.chat_template=PATH of a"
                " template with {% generation %}…{% endgeneration %} around what the assistant"
                " writes",
            )
        return self._turn(text, len(before), len(text), chat.messages[index])

    def _turn(self, text: str, start: int, end: int, message: Message) -> Turn:
        _check_turn(text[start:end], message)
        hidden = (start, start)
        if self._hides_reasoning:
            hidden = reasoning_in(text, start, end, message)
        return Turn(start, end, hidden)

    def _render_tagged(self, chat: Conversation) -> RenderedChat:
        text, spans = self._apply_tags(chat.messages, chat.tools)
        indices = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
        if len(spans) == len(indices):
            turns = [
                self._tagged_turn(text, span, chat, index)
                for span, index in zip(spans, indices, strict=True)
                if chat.trained[index]
            ]
            return RenderedChat(text, turns, is_tagged=True)
        if self._hides_reasoning or not all(chat.trained[index] for index in indices):
            raise DataError(
                f"the chat template tags {len(spans)} parts of {len(indices)} assistant turns,"
                " so what is not to be learned cannot be told apart"
            )
        turns = [Turn(start, end, (start, start)) for start, end in spans]
        return RenderedChat(text, turns, is_tagged=True)

    def _tagged_turn(
        self, text: str, span: tuple[int, int], chat: Conversation, index: int
    ) -> Turn:
        start, end = span
        _check_enclosed(text[start:end], chat.messages[index])
        before = self._prompt(chat.messages[:index], chat.tools)
        if start < len(before) < end and text.startswith(before):
            start = len(before)  # what the prompt already holds is never generated
        return self._turn(text, start, end, chat.messages[index])

    def _apply(
        self,
        messages: list[Message],
        tools: list[Any] | None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """Render as transformers does, without the copies that it makes of foreign objects."""
        try:
            template, names = _compile(self._jinja)
            given = {"messages": messages, "tools": tools, "documents": None}
            asked = {"add_generation_prompt": add_generation_prompt}
            # shared: the copy of jinja's chained globals costs as much as rendering a short chat
            context = template.new_context(
                {**names, **given, **asked, **self.special_tokens}, shared=True
            )
            return "".join(template.root_render_func(context))
        except _REFUSALS as error:
            raise _refused(error) from None

    def _apply_tags(
        self, messages: list[Message], tools: list[Any] | None
    ) -> tuple[str, list[tuple[int, int]]]:
        try:
            rendered: Any = render_jinja_template(  # its annotation names another type
                [messages],
                tools=tools,
                chat_template=self._jinja,
                return_assistant_tokens_mask=True,
                **self.special_tokens,
            )
        except _REFUSALS as error:
            raise _refused(error) from None
        [text], [spans] = rendered
        return text, spans

    def _readable(self, messages: list[Message], tools: list[Any] | None) -> list[Message]:
        """Put tool calls in the form that the template reads, or refuse what it would leave out."""
        if tools and "tools" not in self.source:
            raise DataError("the chat template knows no 'tools'", "leave them out of the row")
        if not any("tool_calls" in message for message in messages):
            return messages
        if "tool_calls" not in self.source:
            raise DataError("the chat template knows no 'tool_calls'", "leave them out of the row")
        if self._calls is None:
            self._calls = find_call_form(lambda turns: self._apply(list(turns), None))
        return [self._calls.apply(message) for message in messages]


# The default date of Llama's own templates, in the two forms that templates ask for.
_SAME_DAY = (
    "{%- macro strftime_now(form) -%}"
    "{{ {'%Y-%m-%d': '2024-07-26'}.get(form, '26 Jul 2024') }}"
    "{%- endmacro %}"
)


@lru_cache
def _compile(source: str) -> tuple[Template, dict[str, Any]]:
    """Return a template in the sandbox that transformers renders in, and the names it knows."""
    template: Template = _compile_jinja_template(source)
    return template, dict(template.globals)


_REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)


def _refused(error: Exception) -> DataError:
    if isinstance(error, TemplateSyntaxError):
        return DataError(
            f"the chat template is no valid Jinja: line {error.lineno}: {error.message}",
            "see the file that data.chat_template names, or the one beside the tokenizer",
        )
    return DataError(f"the chat template refuses it: {error}")


def _check_turn(turn: str, message: Message) -> None:
    """Refuse a turn that the template leaves a part of out of."""
    if leaves_out_reasoning(turn, message):
        raise DataError(
            "the chat template leaves out an answer's reasoning",
            "data.chat_template=PATH of a template that writes it, or leave it out of the row",
        )
    for call in message.get("tool_calls", ()):
        if call["function"]["name"] not in turn:
            raise DataError(f"the chat template leaves out a call of '{call['function']['name']}'")


def _check_enclosed(turn: str, message: Message) -> None:
    answer = str(message["content"] or "").rpartition("</think>")[2].strip()
    if answer not in turn:
        raise DataError(
            "the chat template's generation tags do not enclose the assistant's answer",
            "put {% generation %} before and {% endgeneration %} behind the message's content",
        )
