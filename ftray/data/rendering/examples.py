"""What a row says, whatever its format: turns of a conversation, a completion, or plain text."""

from dataclasses import dataclass

from ftray.config.data import DataConfig, Format
from ftray.data.reading.parsing import Values, kind_of
from ftray.data.rendering.column_names import column_hint, found_columns
from ftray.data.rendering.messages import Conversation, Message, build_conversation, parse_messages
from ftray.data.rendering.sharegpt import parse_sharegpt
from ftray.data.rendering.tool_calls import parse_tools
from ftray.errors import DataError


@dataclass(frozen=True)
class Form:
    """What the rows of one source hold; `columns` maps our names to theirs where these differ."""

    format: Format
    columns: dict[str, str]

    def column(self, name: str) -> str:
        """Return their name of one of our columns."""
        return self.columns.get(name, name)


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


def parse_example(row: Values, form: Form, data: DataConfig) -> Example:
    """Read a row of the given form; DataError says what is wrong, not where the row is."""
    match form.format:
        case "messages":
            turns = parse_messages(_column(row, form, "messages"), form.column("messages"))
            return build_conversation(turns, _tools(row, form))
        case "sharegpt":
            return _parse_sharegpt(row, form)
        case "prompt_completion":
            return _parse_completion(row, form, data)
        case "instruction":
            return _parse_pair(_instruction(row, form), _text(row, form, "output"), data)
        case "text":
            return Text(_text(row, form, "text"))


def _parse_sharegpt(row: Values, form: Form) -> Conversation:
    value = _column(row, form, "conversations")
    system = row.get(form.column("system")) or ""
    if not isinstance(system, str):
        raise DataError(f"'{form.column('system')}' is {kind_of(system)}, expected text")
    turns = parse_sharegpt(value, form.column("conversations"), system)
    return build_conversation(turns, _tools(row, form))


def _parse_completion(row: Values, form: Form, data: DataConfig) -> Example:
    values = [_column(row, form, name) for name in ("prompt", "completion")]
    if not any(isinstance(value, list) for value in values):
        return _parse_pair(_text(row, form, "prompt"), _text(row, form, "completion"), data)
    if data.chat_template == "none":
        hint = "set data.chat_template=model, or a path"
        raise DataError("messages in 'prompt' and 'completion' need a chat template", hint)
    before, after = (
        parse_messages(value, form.column(name))
        for value, name in zip(values, ("prompt", "completion"), strict=True)
    )
    return build_conversation([*before, *after], _tools(row, form), first_learned=len(before))


def _parse_pair(prompt: str, completion: str, data: DataConfig) -> Example:
    if data.chat_template == "none":
        return Completion(prompt, completion)
    turns: list[Message] = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": completion},
    ]
    return Conversation(turns, [False, True])


def _instruction(row: Values, form: Form) -> str:
    """Join instruction and input as Alpaca does (github.com/tatsu-lab/stanford_alpaca)."""
    instruction = _text(row, form, "instruction")
    given = row.get(form.column("input"))  # may be absent, null or empty
    if not given:
        return instruction
    return f"{instruction}\n\n{_text(row, form, 'input')}"


def _tools(row: Values, form: Form) -> list[object] | None:
    return parse_tools(row.get(form.column("tools")), form.column("tools"))


def _text(row: Values, form: Form, name: str) -> str:
    value = _column(row, form, name)
    if not isinstance(value, str):
        raise DataError(f"'{form.column(name)}' is {kind_of(value)}, expected text")
    if not value.strip():
        raise DataError(f"'{form.column(name)}' is empty")
    return value


def _column(row: Values, form: Form, name: str) -> object:
    column = form.column(name)
    if column not in row:
        hint = column_hint(row, form.format, form.columns)
        raise DataError(f"no '{column}' (found: {found_columns([row])})", hint)
    value: object = row[column]
    return value
