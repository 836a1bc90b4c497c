"""The rows of a range, each with its line number; what is no row is handed on with its reason."""

from collections.abc import Iterator

from ftray import storage
from ftray.data.reading.blocks import CHANGED, Lines, range_blocks, reading, stream_blocks
from ftray.data.reading.csv_rows import parse_csv_lines
from ftray.data.reading.files import Range
from ftray.data.reading.lists import parse_json_list
from ftray.data.reading.parsing import (
    BadRow,
    Row,
    Values,
    kind_of,
    parse_json_lines,
    parse_text_lines,
)
from ftray.data.reading.tables import Span, read_arrow, read_parquet
from ftray.errors import DataError, StorageError

__all__ = ["BadRow", "RangeReader", "Row", "Values", "kind_of"]


class RangeReader:
    """Reads a range once, in file order; blank lines are no rows.

    Lines count from 1 within the range, in rows where a file has no lines. At the end `lines` says
    how many there were, blank ones too. A file that is not what was planned is a DataError.
    """

    def __init__(self, part: Range) -> None:
        self.part = part
        self.lines = 0

    def __iter__(self) -> Iterator[Row | BadRow]:
        _check_unchanged(self.part)
        try:
            with reading(self.part.path):
                for row in self._rows():
                    self.lines = row.line
                    yield row
        except DataError:
            _check_unchanged(self.part)  # else that is the reason
            raise
        _check_unchanged(self.part)

    def _rows(self) -> Iterator[Row | BadRow]:
        part = self.part
        span = Span(part.start, part.end, part.size)
        match part.kind:
            case "parquet":
                yield from read_parquet(part.path, part.compression, span)
            case "arrow":
                yield from read_arrow(part.path, part.compression, span)
            case "json":
                yield from parse_json_list(_blocks(part), part.path)
            case _:
                lines = Lines(_blocks(part))
                yield from _parse(lines, part)
                self.lines = lines.count


def _parse(lines: Lines, part: Range) -> Iterator[Row | BadRow]:
    match part.kind:
        case "csv":
            return parse_csv_lines(lines, part.path)
        case "text":
            return parse_text_lines(lines)
        case _:
            return parse_json_lines(lines)


def _blocks(part: Range) -> Iterator[bytes]:
    if part.end is None:
        blocks = stream_blocks(part.path, part.compression)
    else:
        blocks = range_blocks(part.path, part.start, part.end)
    for number, block in enumerate(blocks):
        if number == 0 and part.start == 0 and block.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError(f"{part.path}: it is UTF-16, not UTF-8", "save the file as UTF-8")
        if number == 0 and part.start == 0 and (held := _held(block)):
            hint = "give it the suffix of what it holds"
            raise DataError(f"{part.path}: it holds {held}, not {part.kind}", hint)
        yield block


def _held(block: bytes) -> str:
    return next((name for magic, name in _MAGIC.items() if block.startswith(magic)), "")


_MAGIC = {
    b"\x1f\x8b\x08": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PAR1\x15": "Parquet",  # the head of the first page follows
    b"ARROW1\0\0": "Arrow",
    b"PK\3\4": "a zip archive",
}


def _check_unchanged(part: Range) -> None:
    try:
        found = storage.entry(part.path)
    except StorageError as error:
        local = "every node that makes tokens has to see this file"
        hint = error.hint if storage.is_uri(part.path) else local
        raise DataError(error.message, hint) from None
    if found.stamp != part.stamp:
        raise DataError(f"{part.path}: changed while it was read", CHANGED)
