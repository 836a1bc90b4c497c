"""Conversations as ShareGPT exports have them: turns of `from` and `value`."""

from typing import Any

from ftray.data.reading.parsing import kind_of
from ftray.data.rendering.messages import Message, check_answer
from ftray.data.rendering.tool_calls import from_json
from ftray.errors import DataError

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(
        ("gpt", "assistant", "model", "chatgpt", "bard", "bing", "claude"), "assistant"
    ),
    **dict.fromkeys(("function_call", "tool_call"), "function_call"),
    **dict.fromkeys(("tool", "observation", "function_response", "tool_response"), "tool"),
}


def parse_sharegpt(value: object, column: str, system: str) -> list[Message]:
    """Return the turns as messages, which keep their `weight`; `system` may stand before them."""
    turns = from_json(value, column) if isinstance(value, str) else value
    if not isinstance(turns, list):
        raise DataError(f"'{column}' is {kind_of(value)}, expected a list of turns")
    if not turns:
        raise DataError(f"'{column}' is empty")
    messages = [_parse_turn(number, turn) for number, turn in enumerate(turns, start=1)]
    if not system.strip():
        return messages
    if messages[0]["role"] == "system" and messages[0]["content"] != system:
        raise DataError("the row has a system column and a system turn, and they differ")
    return [{"role": "system", "content": system}, *messages[messages[0]["role"] == "system" :]]


def _parse_turn(number: int, turn: object) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"a turn is {kind_of(turn)} (message {number}), expected an object")
    role = _role(number, turn)
    text = turn.get("value")
    if not isinstance(text, str):
        raise DataError(f"'value' is {kind_of(text)} (message {number}), expected text")
    weight = {} if turn.get("weight") is None else {"weight": turn["weight"]}
    if role == "function_call":
        message = {"role": "assistant", "content": "", "tool_calls": _calls(text, number), **weight}
    else:
        message = {"role": role, "content": text, **weight}
    if message["role"] == "assistant":
        check_answer(number, message)
    return message


def _role(number: int, turn: dict[str, Any]) -> str:
    if "from" not in turn:
        found = ", ".join(map(str, turn))
        raise DataError(f"a turn has no 'from' (message {number}; found: {found})")
    role = _ROLES.get(str(turn["from"]))
    if role is None:
        reason = f"unknown 'from': '{turn['from']}' (message {number})"
        raise DataError(reason, f"known are {', '.join(_ROLES)}")
    return role


def _calls(text: str, number: int) -> list[Any]:
    calls = from_json(text, f"value (message {number})")
    return calls if isinstance(calls, list) else [calls]
