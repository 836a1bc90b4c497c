"""Objects behind a URI, through fsspec: no rename, no append, but one put is whole and atomic."""

import errno
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, cast

from ftray.errors import StorageError
from ftray.storage import files as local


def exists(path: str) -> bool:
    """Say whether there is such a file, or a file below it."""
    return bool(_filesystem(path).exists(path))


def read(path: str) -> bytes:
    """Return a file's content."""
    return cast("bytes", _filesystem(path).cat_file(path))


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
# S3 answers 409 while another conditional put of the same key is under way, and asks for a retry.
_TRIES = 10


def _scheme(path: str) -> str:
    return path.partition("://")[0]


def _filesystem(path: str) -> Any:
    import fsspec  # late: local roots never pay for it

    scheme = _scheme(path)
    try:
        # never cache listings: another process may have published since
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        hint = f"pip install {_PACKAGES[scheme]}" if scheme in _PACKAGES else str(error)
        raise StorageError(f"{path}: no package for '{scheme}://' is installed", hint) from None
    except ValueError:
        raise StorageError(f"{path}: unknown scheme '{scheme}://'", _SCHEMES) from None


def _key(filesystem: Any, path: str) -> str:
    """Return a path as fsspec's listings spell it."""
    return str(filesystem._strip_protocol(path))
