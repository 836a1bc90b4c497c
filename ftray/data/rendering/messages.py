"""Messages as chat templates read them: checked, and with one name for each thing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftray.data.reading.parsing import kind_of
from ftray.data.rendering.tool_calls import from_json, parse_tool_calls
from ftray.errors import DataError

Message = dict[str, Any]  # role, content and whatever else a chat template reads

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Conversation:
    """Turns for a chat template; `trained` says of each turn whether it is learned.

    `tools` are JSON schemas. The arguments of tool calls are objects, never text.
    """

    messages: list[Message]
    trained: list[bool]
    tools: list[Any] | None = None


def parse_messages(value: object, column: str) -> list[Message]:
    """Check a list of messages, which may be JSON text; each keeps its `weight`."""
    turns = from_json(value, column) if isinstance(value, str) else value
    if not isinstance(turns, list):
        raise DataError(f"'{column}' is {kind_of(value)}, expected a list of messages")
    if not turns:
        raise DataError(f"'{column}' is empty")
    return [_parse_message(number, turn) for number, turn in enumerate(turns, start=1)]


def build_conversation(
    turns: Sequence[Message], tools: list[Any] | None, first_learned: int = 0
) -> Conversation:
    """Choose what is learned: assistant turns from `first_learned` on, but those of weight 0."""
    trained = [
        turn["role"] == "assistant" and _weight(number, turn) == 1 and number > first_learned
        for number, turn in enumerate(turns, start=1)
    ]
    if not any(trained):
        if not any(turn["role"] == "assistant" for turn in turns[first_learned:]):
            raise DataError("no assistant turn", "there is nothing to learn from: add the answer")
        raise DataError(
            "every assistant turn has weight 0", "there is nothing to learn from: leave the row out"
        )
    messages = [
        {key: part for key, part in turn.items() if key != "weight"} if "weight" in turn else turn
        for turn in turns
    ]
    return Conversation(messages, trained, tools)


def check_answer(number: int, message: Message) -> None:
    """Give an assistant turn's reasoning its names, and refuse a turn without content."""
    reasoning = [message.pop(name) for name in _REASONING if name in message]
    if reasoning and not isinstance(reasoning[0], str):
        raise DataError(
            f"the reasoning is {kind_of(reasoning[0])} (message {number}), expected text"
        )
    if reasoning and reasoning[0].strip():
        message |= dict.fromkeys(_RENDERED, reasoning[0])
    if calls := message.pop("tool_calls", None):
        message["tool_calls"] = parse_tool_calls(calls, number)
        message.setdefault("content", "")
    elif not message.get("content", "").strip():
        raise DataError(f"an assistant turn is empty (message {number})")


# Names that data sets use, the likelier first, and those that templates read: gpt-oss the second.
_REASONING = ("reasoning_content", "reasoning", "thinking")
_RENDERED = ("reasoning_content", "thinking")


def _parse_message(number: int, turn: object) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"a message is {kind_of(turn)} (message {number}), expected an object")
    message = {key: value for key, value in turn.items() if value is not None}  # parquet's absent
    role = message.get("role")
    if role not in ROLES:
        raise _no_such_role(number, message)
    if "function_call" in message:
        reason = f"'function_call' is not supported (message {number})"
        raise DataError(reason, "write it as 'tool_calls'")
    if "content" in message:
        message["content"] = _content(message["content"], number)
    elif role != "assistant" or not message.get("tool_calls"):
        found = ", ".join(map(str, message))
        raise DataError(f"a message has no 'content' (message {number}; found: {found})")
    if role == "assistant":
        check_answer(number, message)
    return message


def _no_such_role(number: int, message: Message) -> DataError:
    if "role" not in message:
        found = ", ".join(map(str, message))
        return DataError(f"a message has no 'role' (message {number}; found: {found})")
    hint = f"the roles are {', '.join(ROLES)}"
    return DataError(f"unknown role: '{message['role']}' (message {number})", hint)


def _content(value: object, number: int) -> str:
    """Return the text of a message's content, which may come in parts of type text."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise DataError(f"'content' is {kind_of(value)} (message {number}), expected text")
    return "".join(_part(part, number) for part in value)


def _part(part: object, number: int) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) and kind == "text" else None
    if isinstance(text, str):
        return text
    what = f"'content' has a part that is no text (message {number}"
    raise DataError(f"{what}; found: {kind})" if kind else f"{what})", "ftray trains on text alone")


def _weight(number: int, turn: Message) -> int:
    weight = turn.get("weight", 1)
    if weight not in (0, 1):
        raise DataError(f"weight is neither 0 nor 1: {weight!r} (message {number})")
    return int(weight)
