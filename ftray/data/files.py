"""Source files, and the fixed ranges of them that become one token shard each.

Ranges depend on the files alone, never on how many tasks or nodes read them. One pass over the
bytes yields the content digest and the line number at which each range begins, so that a task
deep inside a file can name the line it is on.
"""

import glob
import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq
from pyarrow import ArrowInvalid

from ftray.errors import DataError
from ftray.storage import is_uri

RANGE_BYTES = 8 * 2**20  # some 2 million tokens: seconds of work, 10 MB of shard

Kind = Literal["jsonl", "json", "parquet", "csv", "text"]


@dataclass(frozen=True)
class SourceFile:
    """A local file with rows in it; `size` is in bytes."""

    path: str
    kind: Kind
    size: int


@dataclass(frozen=True)
class Range:
    """The part of a source file that becomes shard `number`.

    `start` and `end` are bytes; a line belongs to the range that its first byte is in. For parquet
    they are row groups. `first_line` counts from 1, in lines or in rows of a parquet or JSON file.
    `size` is in bytes, in parquet before compression.
    """

    number: int
    source: int
    path: str
    kind: Kind
    start: int
    end: int
    first_line: int
    size: int


@dataclass(frozen=True)
class Scan:
    """What one pass over a source file shows: its SHA-256, and where its ranges lie."""

    sha256: str
    starts: tuple[int, ...]
    first_lines: tuple[int, ...]
    sizes: tuple[int, ...]
    end: int


def find_sources(paths: Sequence[str]) -> list[SourceFile]:
    """Return the files that paths, globs and folders name, in their order, else by name."""
    return [_source(path) for pattern in paths for path in _expand(pattern)]


def scan_sources(sources: Sequence[SourceFile], range_bytes: int = RANGE_BYTES) -> list[Scan]:
    """Read every file once; a few at a time, since hashing releases the interpreter lock."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(lambda source: _scan(source, range_bytes), sources))


def plan_ranges(sources: Sequence[SourceFile], scans: Sequence[Scan]) -> list[Range]:
    """Number the ranges of all files in file order."""
    ranges: list[Range] = []
    for index, (source, scan) in enumerate(zip(sources, scans, strict=True)):
        ends = [*scan.starts[1:], scan.end]
        columns = zip(scan.starts, ends, scan.first_lines, scan.sizes, strict=True)
        ranges += [
            Range(len(ranges) + order, index, source.path, source.kind, *column)
            for order, column in enumerate(columns)
        ]
    return ranges


def whole(source: SourceFile) -> Range:
    """Return one range that is the whole file."""
    end = _open_parquet(source.path).num_row_groups if source.kind == "parquet" else source.size
    return Range(0, 0, source.path, source.kind, 0, end, 1, source.size)


def place(path: str, kind: Kind, line: int) -> str:
    """Name a row for a message: `train.jsonl line 7`, or `row 7` where a file has no lines."""
    return f"{Path(path).name} {'row' if kind in ('parquet', 'json') else 'line'} {line}"


def row_error(source: str, kind: Kind, line: int, reason: str, hint: str) -> DataError:
    """Say which row is bad, why, and what can be done about it."""
    otherwise = "put it right, or leave such rows out: data.on_bad_row=drop"
    return DataError(f"{place(source, kind, line)}: {reason}", hint or otherwise)


_KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".txt": "text",
}
_KIND_NAMES = ", ".join(_KINDS)


def _expand(pattern: str) -> list[str]:
    if is_uri(pattern):
        raise DataError(f"{pattern}: data behind a URI is not supported yet", "copy it to a folder")
    path = Path(pattern).expanduser()
    if path.is_file():
        return [str(path)]
    if path.is_dir():
        return _in_folder(path)
    if glob.has_magic(pattern):
        found = sorted(
            name for name in glob.glob(str(path), recursive=True) if Path(name).is_file()
        )
        if not found:
            raise DataError(f"{pattern}: matches no file", _neighbours(path))
        return found
    if not path.parent.is_dir():
        raise DataError(f"{pattern}: no such file", f"there is no folder {path.parent}")
    raise DataError(f"{pattern}: no such file", _neighbours(path))


def _in_folder(folder: Path) -> list[str]:
    inside = sorted(path for path in folder.rglob("*") if path.is_file())
    visible = [path for path in inside if not _is_hidden(path.relative_to(folder).parts)]
    found = [str(path) for path in visible if path.suffix.lower() in _KINDS]
    if not found:
        names = ", ".join(path.name for path in visible[:5]) or "nothing"
        raise DataError(f"{folder}: no data files in it (found: {names})", f"needs {_KIND_NAMES}")
    return found


def _is_hidden(parts: Iterable[str]) -> bool:
    return any(part.startswith((".", "_")) for part in parts)  # as in Spark: _SUCCESS, .crc


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    names = sorted(child.name for child in path.parent.iterdir())
    if close := get_close_matches(path.name, names, n=1, cutoff=0.6):
        return f"did you mean '{path.with_name(close[0])}'?"
    data = [name for name in names if Path(name).suffix.lower() in _KINDS]
    return f"in {path.parent}: {', '.join(data[:8]) or 'no data files'}"


def _source(path: str) -> SourceFile:
    kind = _KINDS.get(Path(path).suffix.lower())
    if kind is None:
        suffix = Path(path).suffix or "a file without a suffix"
        raise DataError(f"{path}: unknown kind '{suffix}'", f"ftray reads {_KIND_NAMES}")
    try:
        size = os.path.getsize(path)
        if kind == "json" and not _is_list(path):
            kind = "jsonl"  # many data sets hold one object a line under this suffix
    except OSError as error:
        raise _unreadable(path, error) from None
    if size == 0:
        raise DataError(f"{path}: the file is empty", "each row is one training example")
    return SourceFile(path, kind, size)


def _is_list(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _scan(source: SourceFile, range_bytes: int) -> Scan:
    try:
        if source.kind == "parquet":
            return _scan_parquet(source.path, range_bytes)
        return _scan_bytes(source, range_bytes)
    except OSError as error:
        raise _unreadable(source.path, error) from None


def _scan_bytes(source: SourceFile, range_bytes: int) -> Scan:
    splits = source.kind in ("jsonl", "text")
    step = range_bytes if splits else 2**20
    digest, starts, first_lines = hashlib.sha256(), [0], [1]
    position, newlines, ends_line = 0, 0, False
    with open(source.path, "rb") as file:
        while block := file.read(step):
            if splits and position:
                # the range's own first line comes after the newline at or behind the byte before it
                starts.append(position)
                first_lines.append(newlines + 2 - ends_line)
            digest.update(block)
            newlines += block.count(b"\n")
            ends_line = block.endswith(b"\n")
            position += len(block)
    sizes = [end - start for start, end in pairwise([*starts, position])]
    return Scan(digest.hexdigest(), tuple(starts), tuple(first_lines), tuple(sizes), position)


def _scan_parquet(path: str, range_bytes: int) -> Scan:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    metadata = _open_parquet(path).metadata
    starts, first_lines, sizes, row = [0], [1], [0], 1
    for group in range(metadata.num_row_groups):
        if sizes[-1] >= range_bytes:
            starts.append(group)
            first_lines.append(row)
            sizes.append(0)
        sizes[-1] += metadata.row_group(group).total_byte_size
        row += metadata.row_group(group).num_rows
    groups = metadata.num_row_groups
    return Scan(digest, tuple(starts), tuple(first_lines), tuple(sizes), groups)


def _open_parquet(path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except ArrowInvalid as error:
        raise DataError(f"{path}: not a parquet file: {error}") from None


def _unreadable(path: str, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read: {error.strerror}")
