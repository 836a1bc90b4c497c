"""How a chat template wants tool calls: templates disagree, and most don't say when they fail."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ftray.data.rendering.messages import Message
from ftray.errors import DataError


@dataclass(frozen=True)
class CallForm:
    """Whether arguments are JSON text, and what the content is where a turn has none."""

    has_text_arguments: bool = False
    no_content: str | None = ""

    def apply(self, message: Message) -> Message:
        """Return a message as the template reads it."""
        if "tool_calls" not in message:
            return message
        changed = {**message, "content": message["content"] or self.no_content}
        if self.has_text_arguments:
            changed["tool_calls"] = [_with_text(call) for call in message["tool_calls"]]
        return changed


def find_call_form(render: Callable[[Sequence[Message]], str]) -> CallForm:
    """Try a call with one argument in each form until one is rendered whole, objects first.

    Objects as vLLM passes them: a template that writes JSON would quote text once more.
    """
    for has_text, content in product((False, True), ("", None)):
        form = CallForm(has_text, content)
        try:
            text = render([_ASK, form.apply(_CALL)])
        except DataError:
            continue
        if all(part in text for part in _WRITTEN) and '\\"' not in text:
            return form
    return CallForm()


_ASK: Message = {"role": "user", "content": "Hello"}
_WRITTEN = ("probe_name", "probe_key", "probe_value")
_CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "type": "function",
            "id": "probe0000",  # some templates want nine letters or digits
            "function": {"name": "probe_name", "arguments": {"probe_key": "probe_value"}},
        }
    ],
}


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}
