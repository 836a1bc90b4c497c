"""What the rows of a source hold, told by their columns where the config leaves it open.

The most specific reading wins: turns of a conversation, then `prompt` and `completion`, then
`instruction` and `output`, then pairs under other names that are often used, then plain text.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from ftray.config.data import COLUMNS, DataConfig, Format, SourceConfig
from ftray.data.reading.parsing import Values
from ftray.data.rendering.column_names import OFTEN, column_hint, found_columns, needed
from ftray.data.rendering.examples import Form
from ftray.data.rendering.tool_calls import from_json
from ftray.errors import DataError

logger = logging.getLogger(__name__)


def recognise(rows: Sequence[Values], source: SourceConfig, data: DataConfig) -> Form:
    """Return the form of a source's rows: the configured one, or the first that a row fits.

    DataError where none does, or where the config rules it out.
    """
    columns = data.columns if source.columns is None else source.columns
    chosen = source.format or data.format
    if chosen == "auto":
        form = _told_by(rows, columns, source)
    else:
        known = COLUMNS[chosen]
        form = Form(chosen, {ours: name for ours, name in columns.items() if ours in known})
    if data.chat_template == "none" and form.format in ("messages", "sharegpt"):
        hint = "set data.chat_template=model, or a path"
        raise DataError(f"{source.name}: format '{form.format}' needs a chat template", hint)
    return form


@cache
def _tell_once(choice: str) -> None:
    """Log a choice when it is made first: a run looks at its first rows more than once."""
    logger.info("%s", choice)


def _told_by(rows: Sequence[Values], columns: Mapping[str, str], source: SourceConfig) -> Form:
    for row in rows:
        form = _fitting(row, columns)
        if form is not None:
            _tell_once(_reason(form, row, source))
            return form
    if not rows:
        raise DataError(f"{source.name}: there is no row to tell the format by", "set data.format")
    if form := _fitting(rows[0], columns, by_name=True):
        return form  # what is wrong with the row is said with its place
    found = found_columns(rows)
    hint = column_hint(rows[0], "prompt_completion", columns)
    raise DataError(f"{source.name}: no format fits the columns (found: {found})", hint)


def _fitting(row: Values, columns: Mapping[str, str], *, by_name: bool = False) -> Form | None:
    """Try the formats that know all of the configured columns, the most specific first."""
    for format_name, names in _READINGS:
        if set(columns) <= set(COLUMNS[format_name]):
            theirs = {
                ours: _theirs(
                    row,
                    (columns[ours],) if ours in columns else often,
                    _held(format_name, by_name=by_name),
                )
                for ours, often in names.items()
            }
            if all(theirs[name] for name in needed(format_name)):
                renamed = {ours: name for ours, name in theirs.items() if name not in (ours, "")}
                return Form(format_name, {**renamed, **columns})
    return None


_Names = Mapping[str, tuple[str, ...]]
_INPUT = ("input", "context")
_READINGS: tuple[tuple[Format, _Names], ...] = (
    ("messages", {"messages": OFTEN["messages"]}),
    ("sharegpt", {"conversations": OFTEN["conversations"]}),
    ("prompt_completion", {"prompt": ("prompt",), "completion": ("completion",)}),
    ("instruction", {"instruction": ("instruction",), "output": OFTEN["output"], "input": _INPUT}),
    ("prompt_completion", {"prompt": OFTEN["prompt"], "completion": OFTEN["completion"]}),
    ("text", {"text": OFTEN["text"]}),
)


def _held(format_name: Format, *, by_name: bool) -> Callable[[object], bool]:
    return (lambda _: True) if by_name else _HOLDS[format_name]


def _theirs(row: Values, names: Sequence[str], holds: Callable[[object], bool]) -> str:
    return next((name for name in names if name in row and holds(row[name])), "")


def _has_turns(value: object, *keys: str) -> bool:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = from_json(value, "")
        except DataError:
            return False
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and all(key in first for key in keys)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_HOLDS: dict[Format, Callable[[object], bool]] = {
    "messages": lambda value: _has_turns(value, "role"),
    "sharegpt": lambda value: _has_turns(value, "from", "value"),
    "prompt_completion": lambda value: _is_text(value) or _has_turns(value, "role"),
    "instruction": lambda value: value is None or _is_text(value),
    "text": _is_text,
}


def _reason(form: Form, row: Values, source: SourceConfig) -> str:
    """Say what was chosen, by which columns, and which are not read: they might matter."""
    read = [form.column(name) for name in COLUMNS[form.format] if form.column(name) in row]
    turns = {"messages": " of role and content", "sharegpt": " of from and value"}
    has = " and ".join(f"'{name}'" for name in read[: 1 if form.format in turns else None])
    unread = [str(name) for name in row if name not in read]
    rest = f" (not read: {', '.join(unread)})" if unread else ""
    what = turns.get(form.format, "")
    return f"format={form.format}: the rows of {source.name} have {has}{what}{rest}"
