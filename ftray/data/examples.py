"""What a row says, whatever its format: turns of a conversation, a completion, or plain text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftray.config.run import COLUMNS, DataConfig
from ftray.data.readers import Values, kind_of
from ftray.errors import DataError

Message = dict[str, Any]  # role, content and whatever else a chat template reads

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Conversation:
    """Turns for a chat template; `trained` says of each turn whether it is learned."""

    messages: list[Message]
    trained: list[bool]
    tools: list[Any] | None = None


@dataclass(frozen=True)
class Completion:
    """Raw text whose second part is learned."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Text:
    """Raw text that is learned whole."""

    text: str


Example = Conversation | Completion | Text


def parse_example(row: Values, data: DataConfig) -> Example:
    """Read a row in the configured format; DataError says what is wrong, not where the row is."""
    match data.format:
        case "messages":
            return _parse_messages(row, data)
        case "prompt_completion":
            prompt, completion = _text(row, data, "prompt"), _text(row, data, "completion")
            return _parse_pair(prompt, completion, data)
        case "instruction":
            return _parse_pair(_instruction(row, data), _text(row, data, "output"), data)
        case "text":
            return Text(_text(row, data, "text"))


def _parse_pair(prompt: str, completion: str, data: DataConfig) -> Example:
    if data.chat_template == "none":
        return Completion(prompt, completion)
    turns: list[Message] = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": completion},
    ]
    return Conversation(turns, [False, True])


def _instruction(row: Values, data: DataConfig) -> str:
    """Join instruction and input as Alpaca does (github.com/tatsu-lab/stanford_alpaca)."""
    instruction = _text(row, data, "instruction")
    given = row.get(data.columns.get("input", "input"))  # may be absent, null or empty
    if not given:
        return instruction
    return f"{instruction}\n\n{_text(row, data, 'input')}"


def _text(row: Values, data: DataConfig, name: str) -> str:
    value = _column(row, data, name)
    if not isinstance(value, str):
        raise DataError(f"'{data.columns.get(name, name)}' is {kind_of(value)}, expected text")
    if not value.strip():
        raise DataError(f"'{data.columns.get(name, name)}' is empty")
    return value


def _column(row: Values, data: DataConfig, name: str) -> object:
    column = data.columns.get(name, name)
    if column not in row:
        found = ", ".join(map(str, row)) or "no columns"
        raise DataError(f"no '{column}' (found: {found})", _column_hint(row, data))
    value: object = row[column]
    return value


# Names that public data sets use for our columns, the likelier first.
_OFTEN = {
    "messages": ("messages", "conversation", "conversations", "chat"),
    "prompt": ("prompt", "question", "query", "input", "instruction"),
    "completion": ("completion", "answer", "response", "output", "target"),
    "instruction": ("instruction",),
    "output": ("output", "response"),
    "text": ("text", "content", "document"),
}


def _column_hint(row: Values, data: DataConfig) -> str:
    """Name the settings under which the row's columns would do."""
    formats = [data.format, *(name for name in COLUMNS if name != data.format)]
    for exact in (True, False):
        for format_name in formats:
            needed = [name for name in COLUMNS[format_name] if name != "input"]
            theirs = {name: _their_name(row, name, exact=exact) for name in needed}
            if all(theirs.values()):
                return _settings(format_name, theirs, data)
    return f"set data.columns={{{COLUMNS[data.format][0]}: YOUR_COLUMN}}, or another data.format"


def _their_name(row: Values, name: str, *, exact: bool) -> str:
    names = (name,) if exact else _OFTEN[name]
    return next((theirs for theirs in names if theirs in row), "")


def _settings(format_name: str, theirs: Mapping[str, str], data: DataConfig) -> str:
    settings = [] if format_name == data.format else [f"data.format={format_name}"]
    renamed = [f"{ours}: {name}" for ours, name in theirs.items() if ours != name]
    if renamed:
        settings.append(f"data.columns='{{{', '.join(renamed)}}}'")
    elif data.columns:
        settings.append("data.columns={}")
    return "set " + " ".join(settings)


def _parse_messages(row: Values, data: DataConfig) -> Conversation:
    column = data.columns.get("messages", "messages")
    value = _column(row, data, "messages")
    if not isinstance(value, list):
        raise DataError(f"'{column}' is {kind_of(value)}, expected a list of messages")
    if not value:
        raise DataError(f"'{column}' is empty")
    turns = [_parse_message(number, turn) for number, turn in enumerate(value, start=1)]
    messages = [{key: part for key, part in turn.items() if key != "weight"} for turn in turns]
    trained = [_is_trained(number, turn) for number, turn in enumerate(turns, start=1)]
    if not any(turn["role"] == "assistant" for turn in turns):
        raise DataError("no assistant turn", "there is nothing to learn from: add the answer")
    if not any(trained):
        raise DataError("every assistant turn has weight 0", "there is nothing to learn from")
    tools = row.get("tools")
    if tools and not isinstance(tools, list):
        raise DataError(f"'tools' is {kind_of(tools)}, expected a list of objects")
    return Conversation(messages, trained, tools or None)


def _parse_message(number: int, turn: object) -> Message:
    where = f"(message {number})"
    if not isinstance(turn, dict):
        raise DataError(f"a message is {kind_of(turn)} {where}, expected an object")
    message = {key: value for key, value in turn.items() if value is not None}  # parquet's absent
    if "role" not in message:
        raise DataError(f"a message has no 'role' {where[:-1]}; found: {', '.join(message)})")
    if message["role"] not in ROLES:
        known = ", ".join(ROLES)
        raise DataError(f"unknown role: '{message['role']}' {where}", f"the roles are {known}")
    if "function_call" in message:
        raise DataError(f"'function_call' is not supported {where}", "write it as 'tool_calls'")
    if message["role"] == "assistant" and message.get("tool_calls"):
        message.setdefault("content", "")
        return message
    if "content" not in message:
        raise DataError(f"a message has no 'content' {where[:-1]}; found: {', '.join(message)})")
    message["content"] = _content(message["content"], where)
    if message["role"] == "assistant" and not message["content"].strip():
        raise DataError(f"an assistant turn is empty {where}")
    return message


def _content(value: object, where: str) -> str:
    """Return the text of a message's content, which may come in parts of type text."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise DataError(f"'content' is {kind_of(value)} {where}, expected text")
    texts = []
    for part in value:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise DataError(f"'content' has a part that is no text {where}")
        texts.append(text)
    return "".join(texts)


def _is_trained(number: int, turn: Message) -> bool:
    weight = turn.get("weight", 1)
    if weight not in (0, 1):
        raise DataError(f"weight is neither 0 nor 1: {weight!r} (message {number})")
    return turn["role"] == "assistant" and bool(weight)
