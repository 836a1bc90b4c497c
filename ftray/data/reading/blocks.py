"""The bytes of source files: ranges, whole streams, decompressed, and the lines in them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import pyarrow as pa

from ftray import storage
from ftray.data.reading.kinds import Compression
from ftray.errors import DataError, StorageError
from ftray.storage.border import Border

BLOCK_BYTES = 2**20
CHANGED = "leave source files as they are until all tokens are made; run again to read the new ones"
AHEAD_BYTES = 8 * 2**20  # of a stream from an object store: one request takes some 0.1 s


class Readable(Protocol):
    """What reading a stream takes of a file."""

    def read(self, size: int, /) -> bytes:
        """Return up to that many bytes, none at the end."""
        ...


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn what may go wrong in reading a source into a DataError."""
    try:
        with Border("cannot read", path):
            yield
    except StorageError as error:
        raise DataError(error.message, error.hint) from None


@contextmanager
def open_stream(
    path: str, compression: Compression | None, *, ahead: int = AHEAD_BYTES
) -> Iterator[Readable]:
    """Open a file to read it from its beginning to its end, decompressed."""
    with storage.open_file(path, ahead=ahead) as raw:
        yield _Decompressed(raw, path, compression) if compression else raw


def stream_blocks(path: str, compression: Compression | None) -> Iterator[bytes]:
    """Yield all bytes of a file, decompressed, in blocks of 1 MiB."""
    with open_stream(path, compression) as file:
        while block := read_up_to(file, BLOCK_BYTES):
            yield block


def range_blocks(path: str, start: int, end: int) -> Iterator[bytes]:
    """Yield the lines that begin in a range of bytes; the last one may end behind it."""
    with storage.open_file(path) as file:
        before = min(start, 1)  # the byte before tells whether a line begins with the range
        file.seek(start - before)
        block = read_up_to(file, before + end - start)
        if len(block) < before + end - start:
            raise DataError(f"{path}: changed while it was read (it has become shorter)", CHANGED)
        block = block[block.find(b"\n") + 1 or len(block) :] if start else block
        yield block
        step = BLOCK_BYTES // 16
        while block and not block.endswith(b"\n"):
            block, newline, _ = read_up_to(file, step).partition(b"\n")
            block += newline
            yield block
            step = min(2 * step, AHEAD_BYTES)


def read_up_to(file: Readable, size: int) -> bytes:
    """Read that many bytes, fewer only at the end: streams may return less at a time."""
    block = file.read(size)
    if len(block) == size or not block:
        return block
    blocks = [block]
    while block and (size := size - len(block)):
        block = file.read(size)
        blocks.append(block)
    return b"".join(blocks)


class Lines:
    """Lines of a stream without their newlines; `count` says how many there were so far.

    A line may be as long as memory allows. A byte order mark before a line is none of its text:
    files that begin with one may have been put together.
    """

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.count = 0
        self._blocks = blocks

    def __iter__(self) -> Iterator[bytes]:
        begun: list[bytes] = []  # the pieces of a line that is not over yet
        for block in self._blocks:
            lines = block.split(b"\n")
            last = lines.pop()
            if lines:
                lines[0] = b"".join([*begun, lines[0]])
                begun.clear()
            for line in lines:
                self.count += 1
                yield line.removeprefix(b"\xef\xbb\xbf")
            begun.append(last)
        if last := b"".join(begun):
            self.count += 1
            yield last.removeprefix(b"\xef\xbb\xbf")


class _Decompressed:
    """A file whose reads are decompressed; one that is cut off never just ends early."""

    def __init__(self, raw: Readable, path: str, compression: Compression) -> None:
        self._path = path
        self._compression = compression
        self._stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression)

    def read(self, size: int) -> bytes:
        try:
            return bytes(self._stream.read(size))
        except OSError as error:
            if error.errno is not None or type(error) is not OSError:
                raise  # from the file below, not from the decompression
            reason = f"the {self._compression} data is broken or cut off: {error}"
            hint = "copy the file again; or its suffix is not what it holds"
            raise DataError(f"{self._path}: {reason}", hint) from None
