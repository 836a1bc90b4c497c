"""Tools and the calls of them, however a data set stores them: as objects, or as JSON text."""

import json
from typing import Any

from ftray.data.reading.parsing import kind_of
from ftray.errors import DataError


def from_json(text: str, name: str) -> Any:
    """Parse what a column without nesting (Parquet, CSV) keeps as text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise DataError(f"'{name}' is text but no JSON: {reason}") from None


def parse_tools(value: object, column: str) -> list[Any] | None:
    """Return the schemas of the tools that a row has, if any.

    Null fields are left out: Arrow gives every object the fields of all others.
    """
    if not value:
        return None
    found = from_json(value, column) if isinstance(value, str) else value
    if not isinstance(found, list):
        raise DataError(f"'{column}' is {kind_of(found)}, expected a list of objects")
    tools = [from_json(tool, column) if isinstance(tool, str) else _bare(tool) for tool in found]
    for tool in tools:
        if not isinstance(tool, dict):
            raise DataError(f"'{column}' has {kind_of(tool)} in it, expected objects")
    return tools or None


def parse_tool_calls(value: object, number: int) -> list[dict[str, Any]]:
    """Return a message's calls as OpenAI nests them, the arguments as objects."""
    calls = from_json(value, "tool_calls") if isinstance(value, str) else value
    if not isinstance(calls, list):
        raise DataError(f"'tool_calls' is {kind_of(calls)} (message {number}), expected a list")
    return [_parse_call(call, number) for call in calls]


def _parse_call(call: object, number: int) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise DataError(f"a tool call is {kind_of(call)} (message {number}), expected an object")
    function = call.get("function") or call  # flat, as the models write it
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise DataError(f"a tool call has no 'name' (message {number})")
    called = {"name": name, "arguments": _arguments(function.get("arguments"), name, number)}
    named = {"id": call["id"]} if call.get("id") else {}
    return {"type": "function", **named, "function": called}


def _arguments(value: object, name: str, number: int) -> dict[str, Any]:
    if not value:
        return {}
    found = from_json(value, f"arguments of {name}") if isinstance(value, str) else _bare(value)
    if not isinstance(found, dict):
        kind = kind_of(found)
        raise DataError(f"arguments of '{name}' are {kind} (message {number}), expected an object")
    return found


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _bare(part) for key, part in value.items() if part is not None}
    return [_bare(part) for part in value] if isinstance(value, list) else value
