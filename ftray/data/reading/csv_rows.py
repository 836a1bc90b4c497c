"""Records of CSV, which may go over several lines."""

import csv
import re
from collections import deque
from collections.abc import Iterator

from ftray.data.reading.blocks import Lines
from ftray.data.reading.parsing import BadRow, Row, bad_text
from ftray.errors import DataError

LONGEST_FIELD = 2**24  # characters; the module's own 128 KiB are less than a long document


def parse_csv_lines(lines: Lines, path: str) -> Iterator[Row | BadRow]:
    """Yield a row for each record behind the header, named by the line that it begins on.

    Where quotes are wrong that one line is bad, and reading goes on with the next: else a quote
    that is never closed would make one value of all that follows.
    """
    csv.field_size_limit(LONGEST_FIELD)
    text = _Text(lines)
    header: list[str] = []
    reader = csv.reader(text, strict=True)
    while True:
        text.begin_record()
        line = text.line
        try:
            fields = next(reader, None)
        except csv.Error as error:
            if not header:
                reason, _, _ = str(error).partition(" - ")  # then comes advice to programmers
                hint = f"{_QUOTES}; lines end with \\n or \\r\\n"
                raise DataError(f"{path} line {line}: not CSV: {reason}", hint) from None
            yield BadRow(line, f"invalid CSV: {error}", _QUOTES)
            text.go_back_to(line + 1)
            continue
        if fields is None:
            return
        if not header:
            header = _checked_header(path, fields)
        elif fields:
            yield _parse_record(line, header, fields)


_QUOTES = 'put text with commas or line ends in "quotes", and a quote in it twice: ""'


class _Text:
    """Lines as text, of which those of the last record can be read again."""

    def __init__(self, lines: Lines) -> None:
        self.line = 1
        self._lines = iter(lines)
        self._record: list[str] = []
        self._again: deque[str] = deque()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        # a surrogate stands for a byte that is no UTF-8: found again in the row that it is in
        text = self._again.popleft() if self._again else _decode(next(self._lines))
        self._record.append(text)
        return text

    def begin_record(self) -> None:
        """Forget the lines of the record before: the next one begins here."""
        self.line += len(self._record)
        self._record.clear()

    def go_back_to(self, line: int) -> None:
        """Read the lines again that follow a record's first."""
        self._again.extendleft(reversed(self._record[line - self.line :]))
        del self._record[line - self.line :]


def _decode(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape") + "\n"


def _checked_header(path: str, header: list[str]) -> list[str]:
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(f"{path}: the header has '{twice[0]}' twice", "name each column once")
    if len(header) == 1 and (other := re.search(r"[;\t|]", header[0])):
        reason = f"its header has {other[0]!r} between the names, where ftray reads commas"
        raise DataError(f"{path}: {reason}", "write it with commas, or as JSONL or Parquet")
    return header


def _parse_record(line: int, header: list[str], fields: list[str]) -> Row | BadRow:
    if len(fields) != len(header):
        reason = f"wrong number of fields ({len(fields)}; the header has {len(header)})"
        return BadRow(line, reason, _QUOTES)
    return bad_text(line, fields) or Row(line, dict(zip(header, fields, strict=True)))
