"""Rows out of lines and JSON lists; what is no row is handed on with its reason."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ftray.data.reading.blocks import Lines

Values = dict[str, Any]  # one row as a file has it: a foreign border


@dataclass(frozen=True, slots=True)
class Row:
    """A row's values under the file's own column names."""

    line: int
    values: Values


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that cannot be used, and why.

    The head of a reason, up to its first `:` or `(`, says what kind it is: reports count by it.
    """

    line: int
    reason: str
    hint: str = ""


def parse_json_lines(lines: Lines) -> Iterator[Row | BadRow]:
    """Yield a row for each line that is a JSON object."""
    parser = JsonParser()
    for data in lines:
        if not data or data.isspace():
            continue
        if lines.count == 1 and data.startswith(b"["):
            hint = "name the file .json if all of it is one list"
            yield BadRow(1, "expected a JSON object (found: a list)", hint)
        else:
            yield parser.parse_line(lines.count, data)


def parse_text_lines(lines: Lines) -> Iterator[Row | BadRow]:
    """Yield a row for each line, with all of it as `text`."""
    for data in lines:
        try:
            text = data.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            yield _no_utf8(lines.count, error)
            continue
        if "\0" in text:
            yield BadRow(lines.count, *_NUL)
        elif text.strip():
            yield Row(lines.count, {"text": text})


class JsonParser:
    """Parses objects, and notices what json takes but no dataset means: a key that comes twice."""

    def __init__(self) -> None:
        self._repeated: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def parse_line(self, line: int, data: bytes) -> Row | BadRow:
        """Return the row in a line, or why it is none."""
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            return _no_utf8(line, error)
        self._repeated.clear()
        try:
            value = self._decoder.decode(text)
        except RecursionError:
            return BadRow(line, "invalid JSON: nested too deeply")
        except json.JSONDecodeError as error:
            return _no_json(line, text, error)
        except ValueError as error:  # a number of more digits than Python converts
            return BadRow(line, f"invalid JSON: {error}")
        return self.check(line, value, text)

    def parse_next(self, text: str, start: int) -> tuple[Any, int]:
        """Return the value that begins there, and where it ends; JSONDecodeError if it does not."""
        self._repeated.clear()
        value, end = self._decoder.raw_decode(text, start)
        return value, end

    def check(self, line: int, value: object, text: str) -> Row | BadRow:
        """Return the value just parsed out of `text` as a row, or why it is none."""
        if self._repeated:
            return BadRow(line, f"a key comes twice: '{self._repeated[0]}'", "keep one of them")
        if not isinstance(value, dict):
            return BadRow(line, f"expected a JSON object (found: {kind_of(value)})")
        # only escapes can write these: raw NULs are no JSON, and raw surrogates no UTF-8
        if any(escape in text for escape in ("\\u0000", "\\ud", "\\uD")):
            return bad_text(line, value) or Row(line, value)
        return Row(line, value)

    def _object(self, pairs: list[tuple[str, Any]]) -> Values:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            self._repeated.append(next(name for name in names if names.count(name) > 1))
        return values


def kind_of(value: object) -> str:
    """Name a JSON value's type in words."""
    names = {bool: "true or false", str: "text", list: "a list", dict: "an object"}
    if value is None:
        return "null"
    return names.get(type(value), "a number" if isinstance(value, int | float) else "a value")


def bad_text(line: int, value: object) -> BadRow | None:
    """Say what in a value's texts is no text: NULs, and halves of characters."""
    for text in _texts(value):
        if "\0" in text:
            return BadRow(line, *_NUL)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            if (byte := ord(error.object[error.start]) - 0xDC00) in range(0x80, 0x100):
                return BadRow(line, f"invalid UTF-8 (byte 0x{byte:02x})", _SAVE_AS_UTF8)
            return BadRow(line, "half a character: a lone surrogate such as \\ud83d is no text")
    return None


_SAVE_AS_UTF8 = "save the file as UTF-8"
_NUL = ("NUL character", "what follows a NUL is lost to many tools: take it out of the text")


def _texts(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for name, inner in value.items():
                yield from _texts(name)
                yield from _texts(inner)
        case list() | tuple():
            for inner in value:
                yield from _texts(inner)


def _no_utf8(line: int, error: UnicodeDecodeError) -> BadRow:
    byte = error.object[error.start]
    return BadRow(line, f"invalid UTF-8 (byte 0x{byte:02x} at {error.start})", _SAVE_AS_UTF8)


def _no_json(line: int, text: str, error: json.JSONDecodeError) -> BadRow:
    if "\0" in text:
        return BadRow(line, *_NUL)
    hint = "one JSON object a line: {...}"
    return BadRow(line, f"invalid JSON: {error.msg} at column {error.colno}", hint)
