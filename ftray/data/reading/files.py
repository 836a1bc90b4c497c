"""Source files, and the fixed ranges of them that are one task each.

Ranges follow from listings and footers alone, never from how many tasks or nodes read them, and
nothing is read through before training begins.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ftray import storage
from ftray.config.data import SourceConfig
from ftray.data.reading.blocks import open_stream, read_up_to, reading
from ftray.data.reading.hub import hub_entries
from ftray.data.reading.kinds import (
    KIND_NAMES,
    Compression,
    Kind,
    compression_of_file,
    file_name,
    kind_of_file,
)
from ftray.data.reading.listing import list_path
from ftray.data.reading.tables import Span, arrow_spans, parquet_spans
from ftray.errors import DataError
from ftray.storage import is_uri
from ftray.storage.entry import Entry

RANGE_BYTES = 8 * 2**20  # some 2 million tokens: seconds of work, 10 MB of shards
HASHED_BYTES = 2**30  # hashing takes a second for a GiB: more are known by their stamps
FIRST_BYTES = 2**16
THREADS = 16  # each waits for a file system, mostly


@dataclass(frozen=True)
class SourceFile:
    """A file with rows in it, of the source of that index; `name` is for messages.

    `size` is in bytes as stored; None where it can only be read from beginning to end.
    """

    source: int
    path: str
    name: str
    kind: Kind
    compression: Compression | None
    size: int | None
    stamp: str


@dataclass(frozen=True)
class Range:
    """The part of a file that one task reads, as number `number` of all.

    `start` and `end` are bytes; a line belongs to the range that its first byte is in. For parquet
    they are row groups, for Arrow the bytes of its record batches. Without an end the range is the
    whole file. `size` is in bytes, in parquet before compression.
    """

    number: int
    source: int
    file: int
    path: str
    name: str
    kind: Kind
    compression: Compression | None
    start: int
    end: int | None
    size: int
    stamp: str


def find_files(sources: Sequence[SourceConfig]) -> list[SourceFile]:
    """Return the files of all sources, in their order; those of a glob or folder by name."""
    found = [(number, one) for number, source in enumerate(sources) for one in _entries(source)]
    names = Counter(name for path in {entry.path for _, entry in found} for name in _names(path))
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda one: _source_file(names, *one), found))


def content_ids(files: Sequence[SourceFile]) -> list[str]:
    """Return what identifies each file's content: its SHA-256, where that is soon known.

    That is of local files that together have at most a GiB. All else is known by its stamp: a copy
    of it counts as another file.
    """
    local = {file.path: file.size or 0 for file in files if not is_uri(file.path)}
    if sum(local.values()) > HASHED_BYTES:
        return [file.stamp for file in files]
    with ThreadPoolExecutor(4) as pool:
        digests = dict(zip(local, pool.map(_sha256, local), strict=True))
    return [digests.get(file.path, file.stamp) for file in files]


def plan_ranges(files: Sequence[SourceFile], range_bytes: int = RANGE_BYTES) -> list[Range]:
    """Number the ranges of all files in file order."""
    with ThreadPoolExecutor(THREADS) as pool:
        spans = pool.map(partial(_spans, range_bytes=range_bytes), files)
    places = [(index, span) for index, several in enumerate(spans) for span in several]
    return [_range(number, files, *place) for number, place in enumerate(places)]


def head_of(file: SourceFile) -> Range:
    """Return a range with a file's first rows, which is cheap to read."""
    if file.size is None or file.compression:
        span = Span(0, None, 0)
    elif file.kind in ("jsonl", "text"):
        span = Span(0, min(file.size, FIRST_BYTES), FIRST_BYTES)
    else:
        span = Span(0, 1 if file.kind == "parquet" else None, 0)
    return _range(0, [file], 0, span)


def place(name: str, kind: Kind, line: int) -> str:
    """Name a row for a message: `train.jsonl line 7`, or `row 7` where a file has no lines."""
    return f"{name} {'row' if kind in ('parquet', 'json', 'arrow') else 'line'} {line}"


def row_error(name: str, kind: Kind, line: int, reason: str, hint: str) -> DataError:
    """Say which row is bad, why, and what can be done about it."""
    return bad_row_error(place(name, kind, line), reason, hint)


def bad_row_error(at: str, reason: str, hint: str) -> DataError:
    """Say the same of a row whose place is known in words."""
    otherwise = "put it right, or leave such rows out: data.on_bad_row=drop"
    return DataError(f"{at}: {reason}", hint or otherwise)


def _entries(source: SourceConfig) -> list[Entry]:
    return hub_entries(source) if source.hub else list_path(source.name, source.split)


def _source_file(names: Counter[str], source: int, entry: Entry) -> SourceFile:
    kind, compression = kind_of_file(entry.path), compression_of_file(entry.path)
    if kind is None:
        suffix = Path(file_name(entry.path)).suffix
        reason = f"unknown kind '{suffix}'" if suffix else "its name has no suffix to tell its kind"
        raise DataError(f"{entry.path}: {reason}", f"ftray reads {KIND_NAMES}")
    if entry.size == 0:
        raise DataError(f"{entry.path}: the file is empty", "each row is one training example")
    if kind == "json" and not _is_list(entry.path, compression):
        kind = "jsonl"  # many data sets hold one object a line under this suffix
    name = next((name for name in _names(entry.path) if names[name] == 1), entry.path)
    return SourceFile(source, entry.path, name, kind, compression, entry.size, entry.stamp)


def _names(path: str) -> list[str]:
    """Return what a message may call a file: the first of these that no other file has."""
    return [file_name(path), "/".join(path.split("/")[-2:])]


def _is_list(path: str, compression: Compression | None) -> bool:
    with reading(path), open_stream(path, compression, ahead=FIRST_BYTES) as file:
        return read_up_to(file, 4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _sha256(path: str) -> str:
    with reading(path):
        return storage.sha256(Path(path))


def _spans(file: SourceFile, range_bytes: int) -> list[Span]:
    if file.size is None or file.compression:
        return [Span(0, None, file.size or 0)]
    with reading(file.path):
        match file.kind:
            case "jsonl" | "text":
                starts = range(0, file.size, range_bytes)
                ends = [min(start + range_bytes, file.size) for start in starts]
                return [Span(a, b, b - a) for a, b in zip(starts, ends, strict=True)]
            case "parquet":
                return parquet_spans(file.path, range_bytes)
            case "arrow" if not is_uri(file.path):
                return arrow_spans(file.path, file.size, range_bytes)
    return [Span(0, None, file.size)]


def _range(number: int, files: Sequence[SourceFile], index: int, span: Span) -> Range:
    file = files[index]
    return Range(
        number=number,
        source=file.source,
        file=index,
        path=file.path,
        name=file.name,
        kind=file.kind,
        compression=file.compression,
        start=span.start,
        end=span.end,
        size=span.size,
        stamp=file.stamp,
    )
