"""Rows of Parquet and Arrow files, and where such files can be divided."""

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ftray import storage
from ftray.data.reading.blocks import Readable, open_stream, read_up_to
from ftray.data.reading.kinds import Compression
from ftray.data.reading.parsing import BadRow, Row, bad_text
from ftray.errors import DataError, first_line

BATCH_ROWS = 1024  # turned into Python values at a time
BATCH_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Span:
    """A part of a file: bytes, or row groups of parquet. Without an end it goes on to the last."""

    start: int
    end: int | None
    size: int


def parquet_spans(path: str, range_bytes: int) -> list[Span]:
    """Divide a file between row groups, by its footer; sizes are before compression."""
    with _open_parquet(path, None) as file:
        sizes = [file.metadata.row_group(n).total_byte_size for n in range(file.num_row_groups)]
    return _spans(range(len(sizes) + 1), sizes, range_bytes)


def arrow_spans(path: str, size: int, range_bytes: int) -> list[Span]:
    """Divide a local file between record batches: only the heads of its messages are read."""
    with _table_errors(path, "Arrow"), pa.memory_map(path) as file:
        _skip_magic(file)
        messages = pa.ipc.MessageReader.open_stream(file)
        messages.read_next_message()  # the schema
        bounds = [file.tell()]
        for message in messages:
            if message.type != "record batch":
                return [Span(0, None, size)]  # a dictionary, which the batches behind it need
            bounds.append(file.tell())
        file.seek(max(file.tell() - len(_END), 0))
        _check_end(path, file.read(len(_END)))
    sizes = [end - start for start, end in pairwise(bounds)]
    return _spans(bounds, sizes, range_bytes)


def read_parquet(path: str, compression: Compression | None, span: Span) -> Iterator[Row | BadRow]:
    """Yield the rows of some row groups; a compressed file is first unpacked to a temporary one."""
    with _open_parquet(path, compression) as file, _table_errors(path, "Parquet"):
        end = file.num_row_groups if span.end is None else min(span.end, file.num_row_groups)
        groups = list(range(span.start, end))
        batches = file.iter_batches(_batch_rows(file.metadata, groups), row_groups=groups)
        yield from _rows(path, batches)


def read_arrow(path: str, compression: Compression | None, span: Span) -> Iterator[Row | BadRow]:
    """Yield the rows of some record batches, or of a whole file of either Arrow format."""
    with _table_errors(path, "Arrow"):
        if span.end is None:
            with open_stream(path, compression) as stream:
                yield from _rows(path, _streamed_batches(path, stream))
        else:
            with storage.open_file(path) as file:
                yield from _rows(path, _batches_between(pa.PythonFile(file, "r"), span))


_MAGIC = b"ARROW1\0\0"  # begins Arrow's file format; a whole Arrow stream and an index follow it
_END = b"\xff\xff\xff\xff\0\0\0\0"


def _spans(bounds: Sequence[int], sizes: Sequence[int], range_bytes: int) -> list[Span]:
    """Join neighbours until they are large enough; a file without any part is one empty span."""
    spans, start, size = [], bounds[0], 0
    for end, more in zip(bounds[1:], sizes, strict=True):
        size += more
        if size >= range_bytes or end == bounds[-1]:
            spans.append(Span(start, end, size))
            start, size = end, 0
    return spans or [Span(start, start, 0)]


def _batch_rows(metadata: pq.FileMetaData, groups: Sequence[int]) -> int:
    """Return how many rows are turned into Python values at a time: few where they are large."""
    size: int = sum(metadata.row_group(group).total_byte_size for group in groups)
    rows: int = sum(metadata.row_group(group).num_rows for group in groups)
    return max(1, min(BATCH_ROWS, BATCH_BYTES * rows // max(size, 1)))


@contextmanager
def _table_errors(path: str, kind: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
            raise  # from the file system; Arrow's own have no number
        reason = f"not readable as {kind}: {first_line(error)}"
        raise DataError(f"{path}: {reason}", "it may be cut off: write or copy it again") from None


@contextmanager
def _open_parquet(path: str, compression: Compression | None) -> Iterator[pq.ParquetFile]:
    with _table_errors(path, "Parquet"), _random_access(path, compression) as file:
        far = storage.is_uri(path)  # there few large requests are best, here little memory
        yield pq.ParquetFile(
            file, pre_buffer=far, buffer_size=0 if far else 2**20, page_checksum_verification=True
        )


@contextmanager
def _random_access(path: str, compression: Compression | None) -> Iterator[IO[bytes]]:
    if not compression and storage.entry(path).size is not None:
        with storage.open_file(path) as file:
            yield file
        return
    with tempfile.TemporaryFile() as copy, open_stream(path, compression) as stream:
        while block := stream.read(2**20):
            copy.write(block)
        copy.seek(0)
        yield copy


def _streamed_batches(path: str, stream: Readable) -> Iterator[pa.RecordBatch]:
    tail = _Tail(stream)
    yield from pa.ipc.open_stream(pa.PythonFile(tail, "r"))
    _check_end(path, tail.last)
    while tail.read(2**20):
        pass  # an index may follow, and the checksum of a compressed stream


def _batches_between(file: pa.NativeFile, span: Span) -> Iterator[pa.RecordBatch]:
    _skip_magic(file)
    schema = pa.ipc.read_schema(file)
    file.seek(span.start)
    while file.tell() < (span.end or 0):
        yield pa.ipc.read_record_batch(pa.ipc.read_message(file), schema)


class _Tail:
    """A stream behind its magic, that remembers its last bytes: Arrow takes any end for the end."""

    closed = False

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._head = read_up_to(stream, len(_MAGIC)).removeprefix(_MAGIC)
        self.last = b""

    def read(self, size: int) -> bytes:
        """Return as many bytes as asked for: of fewer Arrow says that the file is cut off."""
        head, self._head = self._head[:size], self._head[size:]
        data = head + read_up_to(self._stream, size - len(head)) if size > len(head) else head
        self.last = (self.last + data[-len(_END) :])[-len(_END) :]
        return data

    def close(self) -> None:
        """Leave the stream open for who opened it."""


def _check_end(path: str, last: bytes) -> None:
    if last != _END:
        raise pa.ArrowInvalid("it ends without Arrow's end mark")


def _skip_magic(file: Any) -> None:
    if file.read(len(_MAGIC)) != _MAGIC:
        file.seek(0)


def _rows(path: str, batches: Iterable[pa.RecordBatch]) -> Iterator[Row | BadRow]:
    line = 0
    for large in batches:
        counts = Counter(large.schema.names)
        if twice := [name for name, count in counts.items() if count > 1]:
            raise DataError(f"{path}: it has the column '{twice[0]}' twice")
        for start in range(0, large.num_rows, BATCH_ROWS):
            batch = large.slice(start, BATCH_ROWS)
            for row in _values(batch, line + 1):
                line += 1
                yield row


def _values(batch: pa.RecordBatch, first: int) -> Iterator[Row | BadRow]:
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):  # a text that is no UTF-8, a date beyond Python's
        for index in range(batch.num_rows):
            yield _value(batch.slice(index, 1), first + index)
        return
    for line, values in enumerate(rows, start=first):
        yield bad_text(line, values) or Row(line, values)


def _value(row: pa.RecordBatch, line: int) -> Row | BadRow:
    try:
        values = row.to_pylist()[0]
    except UnicodeDecodeError as error:
        return BadRow(line, f"invalid UTF-8 (byte 0x{error.object[error.start]:02x})")
    except (ValueError, OverflowError) as error:
        return BadRow(line, f"a value that Python cannot hold: {first_line(error)}")
    return bad_text(line, values) or Row(line, values)
