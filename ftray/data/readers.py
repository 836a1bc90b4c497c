"""Rows of a range, each with its line number; what is no row is handed on with its reason."""

import codecs
import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ftray.data.files import Range
from ftray.errors import DataError

Values = dict[str, Any]  # one row as a file has it: a foreign border


@dataclass(frozen=True)
class Row:
    """A row's values under the file's own column names."""

    line: int
    values: Values


@dataclass(frozen=True)
class BadRow:
    """A line that cannot be used, and why.

    The head of a reason, up to its first `:` or `(`, says what kind it is: reports count by it.
    """

    line: int
    reason: str
    hint: str = ""


def read_range(part: Range) -> Iterator[Row | BadRow]:
    """Read the rows whose lines start in the range, in file order; blank lines are none."""
    try:
        match part.kind:
            case "jsonl":
                yield from (_parse_json_line(line, data) for line, data in _lines(part))
            case "text":
                yield from (_parse_text_line(line, data) for line, data in _lines(part))
            case "json":
                yield from _read_json(part)
            case "csv":
                yield from _read_csv(part)
            case "parquet":
                yield from _read_parquet(part)
    except OSError as error:
        reason = error.strerror or str(error)
        hint = "every node that makes tokens has to see this file"
        raise DataError(f"{part.path}: cannot be read: {reason}", hint) from None


def _lines(part: Range) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that start in the range, without their ends; the last may end behind it."""
    with open(part.path, "rb") as file:
        if part.start:
            file.seek(part.start - 1)
            file.readline()  # the rest of a line that starts before the range: not ours
        position, line = file.tell(), part.first_line
        while position < part.end and (data := file.readline()):
            start, position = position, position + len(data)
            data = data.removeprefix(codecs.BOM_UTF8) if start == 0 else data
            if data.strip():
                yield line, data.rstrip(b"\r\n")
            line += 1


def _parse_json_line(line: int, data: bytes) -> Row | BadRow:
    if line == 1 and data.startswith(b"["):
        hint = "name the file .json if all of it is one list"
        return BadRow(line, "expected a JSON object (found: a list)", hint)
    try:
        return _checked_object(line, json.loads(_decode(data)), escapes=b"\\u" in data)
    except _INVALID as error:
        return _invalid(line, error)


def _parse_text_line(line: int, data: bytes) -> Row | BadRow:
    try:
        return Row(line, {"text": _decode(data)})
    except UnicodeDecodeError as error:
        return _invalid(line, error)


_INVALID = (ValueError, RecursionError)  # also JSONDecodeError and UnicodeDecodeError


def _decode(data: bytes) -> str:
    return data.decode("utf-8")


def _invalid(line: int, error: Exception) -> BadRow:
    match error:
        case UnicodeDecodeError():
            byte = error.object[error.start]
            reason = f"invalid UTF-8 (byte 0x{byte:02x} at {error.start})"
            return BadRow(line, reason, "save the file as UTF-8")
        case json.JSONDecodeError():
            where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}"
            hint = "one JSON object a line: {...}"
            return BadRow(line, f"invalid JSON: {error.msg} at {where}", hint)
        case RecursionError():
            return BadRow(line, "invalid JSON: nested too deeply")
    return BadRow(line, f"invalid JSON: {error}")


def _checked_object(line: int, value: object, *, escapes: bool) -> Row | BadRow:
    if not isinstance(value, dict):
        return BadRow(line, f"expected a JSON object (found: {kind_of(value)})")
    if escapes:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return BadRow(line, "half a character: a lone surrogate such as \\ud83d is no text")
    return Row(line, value)


def kind_of(value: object) -> str:
    """Name a JSON value's type in words."""
    names = {bool: "true or false", str: "text", list: "a list", dict: "an object"}
    if value is None:
        return "null"
    return names.get(type(value), "a number" if isinstance(value, int | float) else "a value")


def _read_json(part: Range) -> Iterator[Row | BadRow]:
    with open(part.path, "rb") as file:
        data = file.read().removeprefix(codecs.BOM_UTF8)
    try:
        values = json.loads(_decode(data))
    except _INVALID as error:
        bad = _invalid(1, error)
        raise DataError(f"{part.path}: {bad.reason}", "expected one list of objects") from None
    for number, value in enumerate(values, start=1):
        yield _checked_object(number, value, escapes=b"\\u" in data)


def _read_csv(part: Range) -> Iterator[Row | BadRow]:
    csv.field_size_limit(sys.maxsize)  # the module's 128 KiB are less than a long document
    # a surrogate escape stands for a byte that is no UTF-8: found again in the row that it is in
    with open(part.path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        try:
            header, line = next(reader, []), reader.line_num + 1
            _check_header(part.path, header)
            for fields in reader:
                if fields:
                    yield _parse_csv_row(line, header, fields)
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{part.path} line {reader.line_num}: not CSV: {error}") from None


def _check_header(path: str, header: list[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}: the header has '{twice[0]}' twice")


def _parse_csv_row(line: int, header: list[str], fields: list[str]) -> Row | BadRow:
    if len(fields) != len(header):
        reason = f"wrong number of fields ({len(fields)}; the header has {len(header)})"
        return BadRow(line, reason, 'put text with commas or line ends in "quotes"')
    try:
        "".join(fields).encode()
    except UnicodeEncodeError as error:
        byte = ord(error.object[error.start]) - 0xDC00
        return BadRow(line, f"invalid UTF-8 (byte 0x{byte:02x})", "save the file as UTF-8")
    return Row(line, dict(zip(header, fields, strict=True)))


def _read_parquet(part: Range) -> Iterator[Row | BadRow]:
    try:
        file = pq.ParquetFile(part.path)
        groups = list(range(part.start, part.end))
        line = part.first_line
        for batch in file.iter_batches(batch_size=1024, row_groups=groups):
            for values in batch.to_pylist():
                yield Row(line, values)
                line += 1
    except pa.ArrowException as error:
        raise DataError(f"{part.path}: not readable as parquet: {error}") from None
