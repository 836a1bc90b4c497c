"""Objects behind a URI, through fsspec: no rename, no append, but one put is whole and atomic."""

import errno
import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from ftray.errors import StorageError
from ftray.storage import files as local
from ftray.storage.entry import Entry, Held


def exists(path: str) -> bool:
    """Say whether there is such a file, or a file below it."""
    return bool(_filesystem(path).exists(path))


def read(path: str) -> bytes:
    """Return a file's content."""
    return cast("bytes", _filesystem(path).cat_file(path))


def entry(path: str) -> Entry:
    """Return a file's size and stamp, or say that it is a folder."""
    found = _entry(path, _filesystem(path).info(path))
    if _scheme(path) in _WEB and found.size is not None and not _sends_parts(path):
        return replace(found, size=None)
    return found


def find(path: str) -> list[Entry]:
    """Return the files of a glob, or all below a folder, in the order of their names."""
    filesystem = _filesystem(path)
    head = path[: magic.start()] if (magic := _MAGIC.search(path)) else path
    folder = f"{head.rpartition('/')[0] if magic else head.rstrip('/')}/"
    start = f"{_key(filesystem, folder)}/"
    list_all = filesystem.glob if magic else filesystem.find
    found: dict[str, dict[str, Any]] = list_all(path, detail=True)
    files = {name: info for name, info in found.items() if info["type"] == "file"}
    return [_entry(folder + name.removeprefix(start), files[name]) for name in sorted(files)]


def contents(folder: str) -> list[Held]:
    """Return all objects below a folder; nobody tells when one was read."""
    filesystem = _filesystem(folder)
    start = f"{_key(filesystem, folder)}/"
    found: dict[str, dict[str, Any]] = filesystem.find(folder, detail=True)
    names = sorted(name for name in found if name.startswith(start))
    changes = {name: _changed(found[name]) for name in names}
    return [
        Held(name.removeprefix(start), found[name]["size"] or 0, changes[name], changes[name])
        for name in names
    ]


def open_file(path: str, ahead: int) -> BinaryIO:
    """Open a file so that a read is one request, or fetches that many bytes more."""
    filesystem = _filesystem(path)
    if not ahead:
        return cast("BinaryIO", filesystem.open(path, "rb", cache_type="none"))
    if _scheme(path) in _WEB and not _sends_parts(path):
        ahead = 0  # then fsspec reads the answer to one request
    return cast("BinaryIO", filesystem.open(path, "rb", block_size=ahead, cache_type="readahead"))


def write(path: str, data: bytes) -> None:
    """Put a file, in one request."""
    _filesystem(path).pipe_file(path, data)


def create(path: str, data: bytes) -> bool:
    """Put a file unless there is one: the server decides, by If-None-Match or its like."""
    scheme = _scheme(path)
    if scheme not in _CONDITIONAL:
        raise StorageError(
            f"{path}: '{scheme}' has no conditional create: two writers could lose data", _SCHEMES
        )
    for _ in range(_TRIES):
        try:
            _filesystem(path).pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if "ConditionalRequestConflict" not in str(error.__cause__):
                raise
        else:
            return True
    raise OSError(errno.EBUSY, "other writers keep changing the same file")


def children(folder: str) -> list[str]:
    """Return the names of a folder's direct children."""
    filesystem = _filesystem(folder)
    paths = [str(path).rstrip("/") for path in filesystem.ls(folder, detail=False)]
    return [PurePosixPath(path).name for path in paths if path != _key(filesystem, folder)]


def files(folder: str) -> list[str]:
    """Return the names of all files below a folder, relative to it, sorted."""
    filesystem = _filesystem(folder)
    start = f"{_key(filesystem, folder)}/"
    keys = [str(key) for key in filesystem.find(folder)]
    names = [key.removeprefix(start) for key in keys if key.startswith(start)]
    if outside := [name for name in names if ".." in name.split("/")]:
        raise StorageError(f"{folder}: refusing a file name that leads out of it: {outside[0]}")
    return sorted(name for name in names if name and not name.endswith("/"))  # no folder markers


def put(source: Path, folder: str, names: Sequence[str]) -> dict[str, str]:
    """Copy named local files into a folder, several at a time; return their SHA-256."""
    digests = {name: local.sha256(str(source / name)) for name in names}
    targets = [f"{folder}/{name}" for name in names]
    _filesystem(folder).put([str(source / name) for name in names], targets)
    return digests


def put_file(source: Path, target: str) -> None:
    """Copy one local file; a large one in parts, of which nothing is seen before the last."""
    _filesystem(target).put_file(str(source), target)


def get(folder: str, names: Sequence[str], target: Path) -> None:
    """Copy named files of a folder into a local one, several at a time."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
    sources = [f"{folder}/{name}" for name in names]
    _filesystem(folder).get(sources, [str(target / name) for name in names])


def is_file(path: str) -> bool:
    """Say whether a path is a file's, not a folder's."""
    return bool(_filesystem(path).isfile(path))


def get_file(path: str, target: Path) -> None:
    """Copy one file to a local path."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _filesystem(path).get_file(path, str(target))


def delete(path: str) -> None:
    """Delete a file or all below a folder, if there is any."""
    filesystem = _filesystem(path)
    with suppress(FileNotFoundError):
        filesystem.rm(path, recursive=not is_file(path))


def sha256(path: str) -> str:
    """Return a file's SHA-256 in hex, reading it through."""
    with _filesystem(path).open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_MAGIC = re.compile(r"[*?[]")
_WEB = ("http", "https")  # of these any address may be a file, and servers differ in what they can
# What stores call a content's digest, or the time of its last change; the first that is there.
_STAMPS = ("ETag", "etag", "blob_id", "xet_hash", "md5Hash", "generation")
_TIMES = ("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "created")


def _entry(path: str, info: Mapping[str, Any]) -> Entry:
    mark = next((info[name] for name in (*_STAMPS, *_TIMES) if info.get(name)), "unknown")
    mark = mark.timestamp() if isinstance(mark, datetime) else mark  # listings differ in the form
    stamp = f"{info['size']}-{mark}"
    return Entry(path, info["size"], stamp, is_folder=info["type"] == "directory")


def _changed(info: Mapping[str, Any]) -> float:
    """When an object was changed; now, where its store does not tell: then it never is old."""
    match next((info[name] for name in _TIMES if info.get(name)), None):
        case datetime() as moment:
            return moment.timestamp()
        case int() | float() as seconds:
            return float(seconds)
        case str() as text:
            return _seconds_of(text)
    return time.time()


def _seconds_of(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return parsedate_to_datetime(text).timestamp()


@lru_cache
def _sends_parts(url: str) -> bool:
    """Ask for the second byte: a server that knows no ranges would begin with the first."""
    with open_file(url, 0) as file:
        try:
            file.seek(1)  # refused where the server said that it sends no parts, or no size
            file.read(1)
        except ValueError:
            return False
    return True


_PACKAGES = {
    "s3": "'ftray[s3]'",
    "s3a": "'ftray[s3]'",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}
_SCHEMES = f"use a local path or one of: {', '.join(f'{scheme}://' for scheme in _PACKAGES)}"
# Elsewhere fsspec looks first and then writes, which two writers can both do.
_CONDITIONAL = {*_PACKAGES, "memory"}
_KNOWN = {*_CONDITIONAL, "http", "https", "hf"}
# S3 answers 409 while another conditional put of the same key is under way, and asks for a retry.
_TRIES = 10


def _scheme(path: str) -> str:
    return path.partition("://")[0]


def _filesystem(path: str) -> Any:
    import fsspec  # late: local roots never pay for it

    scheme = _scheme(path)
    if scheme not in _KNOWN:
        hint = f"{_SCHEMES}; data also from https:// and hf://"
        raise StorageError(f"{path}: unknown scheme '{scheme}://'", hint)
    options = {"client_kwargs": {"timeout": _web_timeout()}} if scheme in _WEB else {}
    try:
        # never cache listings: another process may have published since
        return fsspec.filesystem(scheme, use_listings_cache=False, **options)
    except ImportError as error:
        hint = f"pip install {_PACKAGES[scheme]}" if scheme in _PACKAGES else str(error)
        raise StorageError(f"{path}: no package for '{scheme}://' is installed", hint) from None


@lru_cache
def _web_timeout() -> Any:
    """Allow a file to be read for hours, as long as something comes: the default is 5 minutes."""
    import aiohttp  # late: as above

    return aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=120)


def _key(filesystem: Any, path: str) -> str:
    """Return a path as fsspec's listings spell it."""
    return str(filesystem._strip_protocol(path))
