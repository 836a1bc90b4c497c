"""The knobs of a config section in words, from the docstrings beside them."""

import textwrap
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ftray.config.base import Config

_WIDTH = 100


def described(section: type[Config], start: str) -> str:
    """Return one paragraph a knob: its dotted key, what it may be, its default, its docstring.

    `start` is where the section stands in its file; empty: at the top.
    """
    return "\n".join(line for knob in _knobs(section, start) for line in knob)


def _knobs(section: type[Config], start: str) -> Iterator[list[str]]:
    for name, field in section.model_fields.items():
        key = f"{start}.{name}" if start else name
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            yield from _knobs(field.annotation, key)
            continue
        text = " ".join((field.description or "").split())
        choices = " | ".join(_choices(field.annotation))
        head = f"  {key}" + (f": {choices}" if choices else "") + _default(field)
        yield [
            head,
            *textwrap.wrap(text, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6),
        ]


def _choices(annotation: Any) -> Iterator[str]:
    """Yield the words that a knob may be, where it is one of some."""
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    elif get_origin(annotation) in (Annotated, Union, UnionType):
        for part in get_args(annotation):
            yield from _choices(part)


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined or default in (None, {}, []):
        return ""
    words = {True: "true", False: "false"}
    return f" (default: {words[default] if isinstance(default, bool) else default})"
