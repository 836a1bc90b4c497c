"""A JSON file that is one list, parsed element by element: it may be longer than memory."""

import codecs
import json
from collections.abc import Iterator
from typing import Any

from ftray.data.reading.parsing import BadRow, JsonParser, Row, bad_text
from ftray.errors import DataError

LONGEST = 2**28  # characters of one element, far beyond any row: then its end is missing


def parse_json_list(blocks: Iterator[bytes], path: str) -> Iterator[Row | BadRow]:
    """Yield the elements of a list; broken JSON is a DataError, for nothing behind it is sure."""
    parser, number = JsonParser(), 0
    text = _Text(codecs.iterdecode(blocks, "utf-8", "surrogateescape"), parser)
    try:
        text.take("\ufeff")
        more = text.take("[") and not text.take("]")
        while more:
            number += 1
            value, source = text.take_value()
            yield bad_text(number, source) or parser.check(number, value, source)
            more = text.take(",")
            if not more and not text.take("]"):
                raise _BrokenList("a ',' or ']' is missing behind it")
        if rest := text.peek():
            raise _BrokenList(f"'{rest}' follows the end of the list")
    except _BrokenList as error:
        reason = f"{path} row {number}: invalid JSON: {error}"
        raise DataError(reason, "expected one list of objects") from None


class _BrokenList(Exception):
    pass


class _Text:
    """Decoded text, of which only what is not parsed yet is held."""

    def __init__(self, texts: Iterator[str], parser: JsonParser) -> None:
        self._texts = texts
        self._parser = parser
        self._held = ""
        self._at = 0

    def peek(self) -> str:
        """Return the next character that is no space, or nothing at the end."""
        while True:
            while self._at < len(self._held):
                if self._held[self._at] not in " \t\r\n":
                    return self._held[self._at]
                self._at += 1
            if not self._read_on():
                return ""

    def take(self, character: str) -> bool:
        """Step over the next character that is no space, if it is this one."""
        found = self.peek() == character
        self._at += found
        return found

    def take_value(self) -> tuple[Any, str]:
        """Step over a value; return it, and the text that it was."""
        self.peek()
        while True:
            try:
                value, end = self._parser.parse_next(self._held, self._at)
            except json.JSONDecodeError as error:
                if not (_is_cut_off(error) and self._read_on()):
                    raise _BrokenList(error.msg) from None
                continue
            except (ValueError, RecursionError) as error:  # too many digits, nested too deeply
                raise _BrokenList(str(error)) from None
            if end < len(self._held) or not self._read_on():  # else a number may go on
                start, self._at = self._at, end
                return value, self._held[start:end]

    def _read_on(self) -> bool:
        """Hold at least twice as much, so that a long value is parsed a few times, not often."""
        held, wanted = self._held[self._at :], 2 * (len(self._held) - self._at)
        pieces, length = [held], len(held)
        for text in self._texts if wanted < LONGEST else ():
            pieces.append(text)
            length += len(text)
            if length > wanted:
                break
        self._held, self._at = "".join(pieces), 0
        return length > len(held)


def _is_cut_off(error: json.JSONDecodeError) -> bool:
    """Say whether more text could mend it; 12 characters hold the longest literal or escape."""
    return error.msg.startswith("Unterminated string") or error.pos > len(error.doc) - 12
