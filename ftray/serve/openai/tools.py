"""Tool calls: how a model writes them, how it is made to, and how they are read from its answer."""

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ftray.errors import DataError
from ftray.serve.openai.messages import Function

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Call:
    """A call of a function; `arguments` is JSON text."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


@dataclass(frozen=True)
class CallStyle:
    """How a template has calls written: between tags, or as the whole answer without any."""

    open: str
    close: str
    arguments: str  # the key of the arguments


def call_style(template: str) -> CallStyle:
    """Tell from a chat template's source how its model writes calls. Raises DataError.

    `<tool_call>{"name": …, "arguments": …}</tool_call>` is what Qwen, SmolLM and Hermes write, and
    a bare `{"name": …, "parameters": …}` what Llama 3 does.
    """
    if "tools" not in template:
        raise DataError("the model's chat template knows no tools")
    if _OPEN in template and not re.search(r"<function=|<arg_key>", template):
        return CallStyle(_OPEN, _CLOSE, "arguments")
    if re.search(r"""["']parameters["'\\]*\s*:""", template) and "<" + "function" not in template:
        return CallStyle("", "", "parameters")
    raise DataError("tool calls in the form of the model's chat template are not read yet")


def forced_grammar(style: CallStyle, functions: Sequence[Function], *, several: bool) -> str:
    """Return the grammar of an answer that is a call of one of the functions, or of several."""
    names = " | ".join(f"call_{number}" for number in range(len(functions)))
    again = "+" if several and style.open else ""
    rules = [f"start: ({names}){again}", *_call_rules(style, functions, style.open)]
    return _lark(rules)


def guided_grammar(style: CallStyle, functions: Sequence[Function]) -> str:
    """Return the grammar of an answer of free text in which each call follows its schema."""
    names = " | ".join(f"(head call_{number})" for number in range(len(functions)))
    rules = [
        f"start: ({names})* TEXT",
        "TEXT: /(.|\\n)*/",
        f"head[lazy]: TEXT {json.dumps(style.open)}",
        *_call_rules(style, functions, ""),
    ]
    return _lark(rules)


def _call_rules(style: CallStyle, functions: Sequence[Function], opening: str) -> list[str]:
    return [
        _call_rule(style, number, function, opening) for number, function in enumerate(functions)
    ]


def _call_rule(style: CallStyle, number: int, function: Function, opening: str) -> str:
    """Return one rule, with the blanks that templates put around the object in its place."""
    schema = {
        "type": "object",
        "properties": {
            "name": {"const": function.name},
            style.arguments: function.schema_of_arguments(),
        },
        "required": ["name", style.arguments],
        "additionalProperties": False,
    }
    parts = [f"%json {json.dumps(with_few_blanks(schema))}"]
    if style.open:
        start = json.dumps(f"{opening}\n")
        parts = [start, *parts, json.dumps(f"\n{style.close}")]
    return f"call_{number}: {' '.join(parts)}"


def with_few_blanks(schema: dict[str, Any]) -> dict[str, Any]:
    """Let JSON have blanks where `json.dumps` writes them, or none.

    Anywhere else a model that likes blanks could go on with them for ever. A bounded
    `whitespace_pattern` would allow indented JSON as well, but llguidance 1.7, which vLLM 0.32 has,
    lets it be repeated.
    """
    return {**schema, "x-guidance": _FEW_BLANKS}


_FEW_BLANKS = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}


def _lark(rules: Sequence[str]) -> str:
    text = "\n".join(["%llguidance {}", *rules])
    return json.dumps({"grammars": [{"lark_grammar": text}]})


@dataclass(frozen=True)
class Found:
    """What a part of an answer has turned out to be: text, calls, or both, the text first."""

    text: str = ""
    calls: tuple[Call, ...] = ()


class CallReader:
    """Reads the calls out of one choice's text as it comes.

    Text that might be the beginning of a call is held back. What looks like a call and is none is
    given out as the text that it was.
    """

    def __init__(self, style: CallStyle, names: Sequence[str], *, several: bool) -> None:
        self._style = style
        self._names = frozenset(names)
        self._several = several
        self._held = ""
        self._has_called = False
        self._is_behind = False  # right behind a call

    def read(self, text: str) -> Found:
        """Take the next text."""
        self._held += text
        if self._style.open:
            return self._read_tagged()
        is_json = not self._held.strip() or self._held.lstrip().startswith("{")
        return Found() if is_json and not self._is_behind else Found(self._give(len(self._held)))

    def finish(self) -> Found:
        """Take the end: what is held back is a call without its end, or text."""
        rest = self._give(len(self._held))
        if call := self._parsed(rest.strip().removeprefix(self._style.open)):
            return Found(calls=self._allowed(call))
        return Found(self._said(rest))

    def _read_tagged(self) -> Found:
        said, calls = "", tuple[Call, ...]()
        while (start := self._held.find(self._style.open)) >= 0:
            said += self._said(self._give(start))
            end = self._held.find(self._style.close)
            if end < 0:
                return Found(said, calls)
            whole = self._give(end + len(self._style.close))
            if call := self._parsed(whole[len(self._style.open) : -len(self._style.close)]):
                calls += self._allowed(call)
            else:
                said += self._said(whole)
        said += self._said(self._give(len(self._held) - _overlap(self._held, self._style.open)))
        return Found(said, calls)

    def _said(self, text: str) -> str:
        """Return a text without the blanks that follow a call."""
        if self._is_behind:
            text = text.lstrip()
            self._is_behind = not text
        return text

    def _allowed(self, call: Call) -> tuple[Call, ...]:
        is_first = not self._has_called
        self._is_behind = self._has_called = True
        return (call,) if is_first or self._several else ()

    def _give(self, length: int) -> str:
        given, self._held = self._held[:length], self._held[length:]
        return given

    def _parsed(self, text: str) -> Call | None:
        try:
            tree: Any = json.loads(text)
        except (ValueError, RecursionError):
            return None
        match tree:
            case {"name": str(name), "arguments": dict(arguments)} if name in self._names:
                return Call(name, json.dumps(arguments, ensure_ascii=False))
            case {"name": str(name), "parameters": dict(arguments)} if name in self._names:
                return Call(name, json.dumps(arguments, ensure_ascii=False))
        return None


def _overlap(text: str, tag: str) -> int:
    """Return the length of the longest end of a text that a tag begins with."""
    longest = range(min(len(text), len(tag) - 1), 0, -1)
    return next((length for length in longest if text.endswith(tag[:length])), 0)
