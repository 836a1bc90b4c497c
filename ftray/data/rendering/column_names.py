"""The names that public data sets use for what ftray calls prompt, completion and so on."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ftray.config.data import COLUMNS, Format

# The likelier first. `messages` may turn out to be sharegpt: that shows in the turns, not the name.
OFTEN: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "chat", "dialogue", "dialog"),
    "conversations": ("conversations", "conversation", "messages", "chat", "dialogue", "dialog"),
    "prompt": ("prompt", "question", "query", "input", "problem", "instruction"),
    "completion": ("completion", "answer", "response", "output", "solution", "target"),
    "instruction": ("instruction",),
    "output": ("output", "response", "completion", "answer"),
    "text": ("text", "content", "document"),
}
_OPTIONAL = frozenset({"tools", "system", "input"})


def needed(format_name: Format) -> list[str]:
    """Return our names of the columns that a format cannot do without."""
    return [name for name in COLUMNS[format_name] if name not in _OPTIONAL]


def column_hint(row: Mapping[str, Any], format_name: Format, columns: Mapping[str, str]) -> str:
    """Name the settings under which the row's columns would do."""
    formats: list[Format] = [format_name, *(name for name in COLUMNS if name != format_name)]
    for exact in (True, False):
        for other in formats:
            theirs = {name: _their_name(row, name, exact=exact) for name in needed(other)}
            if all(theirs.values()):
                return _settings(
                    other, theirs, is_new=other != format_name, is_mapped=bool(columns)
                )
    return f"set data.columns={{{COLUMNS[format_name][0]}: YOUR_COLUMN}}, or another data.format"


def found_columns(rows: Sequence[Mapping[str, Any]]) -> str:
    """List the columns of some rows for a message."""
    names = dict.fromkeys(name for row in rows for name in row)
    return ", ".join(map(str, names)) or "no columns"


def _their_name(row: Mapping[str, Any], name: str, *, exact: bool) -> str:
    if exact:
        return name if name in row else ""
    found = {str(theirs).strip().lower(): str(theirs) for theirs in reversed(list(row))}
    return next((found[often] for often in OFTEN[name] if often in found), "")


def _settings(other: str, theirs: Mapping[str, str], *, is_new: bool, is_mapped: bool) -> str:
    settings = [f"data.format={other}"] if is_new else []
    renamed = [f"{ours}: {_quoted(name)}" for ours, name in theirs.items() if ours != name]
    if renamed:
        settings.append(f"data.columns='{{{', '.join(renamed)}}}'")
    elif is_mapped:
        settings.append("data.columns={}")
    return "set " + " ".join(settings)


def _quoted(name: str) -> str:
    return name if name == name.strip() else json.dumps(name, ensure_ascii=False)
