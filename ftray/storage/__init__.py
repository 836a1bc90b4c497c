"""Files of the storage root, on a local path or behind a URI: they appear whole, or not at all.

A path is a `str` in which `/` separates, so that `s3://bucket/key` is one too. Object stores know
neither rename nor append: nothing here needs them. All errors come out as StorageError.
"""

import errno
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from ftray.storage import files, objects
from ftray.storage.border import Border
from ftray.storage.entry import Entry

RECORD = "record.json"


def storage_root(configured: str | None) -> str:
    """Return the configured root, else `$FTRAY_HOME`, else `~/.ftray`; local ones absolute."""
    root = (configured or os.environ.get("FTRAY_HOME") or "~/.ftray").removeprefix("file://")
    return root if is_uri(root) else str(Path(root).expanduser().absolute())


def is_uri(path: str) -> bool:
    """Say whether a path is reached through fsspec."""
    return "://" in path


def join(root: str, *parts: str) -> str:
    """Join parts below a root; the parts are trusted, so check names that users give first."""
    return "/".join([root if root.endswith("://") else root.rstrip("/"), *parts])


def exists(path: str) -> bool:
    """Say whether a file or a folder is there; behind a URI a folder is there if it has files."""
    with Border("cannot look up", path):
        return _place(path).exists(path)


def read(path: str) -> bytes:
    """Return a file's content."""
    with Border("cannot read", path):
        return _place(path).read(path)


def read_if_exists(path: str) -> bytes | None:
    """Return a file's content, None when there is no such file."""
    with Border("cannot read", path):
        try:
            return _place(path).read(path)
        except (FileNotFoundError, NotADirectoryError):
            return None


def write(path: str, data: bytes) -> None:
    """Put a file whole: a reader sees the old content or the new one, never a part."""
    with Border("cannot write", path):
        _place(path).write(path, data)


def create(path: str, data: bytes) -> bool:
    """Put a file whole if there is none, else return False; of many creators exactly one wins."""
    with Border("cannot create", path):
        return _place(path).create(path, data)


def names(folder: str) -> list[str]:
    """Return the sorted names of a folder's direct children; none when it is missing."""
    with Border("cannot list", folder):
        try:
            return sorted(_place(folder).children(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []


def entry(path: str) -> Entry:
    """Return a file's size and stamp, or say that it is a folder."""
    with Border("cannot look up", path):
        return _place(path).entry(path)


def find(path: str) -> list[Entry]:
    """Return all files below a folder, in the order of their names; of a URI also those of a glob.

    Every path starts as the one given does, so what else a URI says about its store is kept.
    """
    with Border("cannot list", path):
        return _place(path).find(path)


def open_file(path: str, *, ahead: int = 0) -> BinaryIO:
    """Open a file for reading; behind a URI a read is one request, or fetches `ahead` bytes.

    What is read later raises the foreign errors: read inside a Border.
    """
    with Border("cannot read", path):
        return _place(path).open_file(path, ahead)


def upload(source: Path, folder: str, *, last: tuple[str, ...] = ()) -> dict[str, str]:
    """Copy a local folder's files, but those named in `last`; return each one's SHA-256.

    Nothing marks the copy as whole: the caller writes the record afterwards.
    """
    with Border("cannot copy to", folder):
        wanted = [name for name in files.files(str(source)) if name not in last]
        return _place(folder).put(source, folder, wanted)


def download(folder: str, target: Path) -> None:
    """Copy all files of a folder into a local one."""
    with Border("cannot copy", folder):
        wanted = _place(folder).files(folder)
        if not wanted:
            raise FileNotFoundError(errno.ENOENT, "no such folder, or an empty one")
        _place(folder).get(folder, wanted, target)


def local_copy(path: str, cache: Path) -> Path:
    """Return a local path itself, else a copy in `cache`: only for what never changes.

    Several processes of one host may ask at once; each gets a whole file or folder.
    """
    if not is_uri(path):
        return Path(path)
    target = cache / hashlib.sha256(path.encode()).hexdigest()[:16] / PurePosixPath(path).name
    if target.exists():
        return target
    staged = files.staging_name(target)
    with Border("cannot copy", path):
        try:
            _fetch(path, staged)
            _rename_unless_there(staged, target)
        finally:
            files.delete(str(staged))
    return target


def delete(path: str, *, keep: str | None = None) -> None:
    """Delete a file, or a folder with all in it but the child `keep`; missing ones are fine.

    A folder's record goes first, so that what is half deleted no longer exists.
    """
    with Border("cannot delete", path):
        surplus = [name for name in names(path) if name != keep] if keep else []
        for name in (RECORD, *surplus):
            _place(path).delete(join(path, name))
        if not keep:
            _place(path).delete(path)


def sha256(path: Path) -> str:
    """Return a local file's SHA-256 in hex."""
    with Border("cannot read", str(path)):
        return files.sha256(str(path))


def verify(folder: str, digests: Mapping[str, str]) -> list[str]:
    """Compare a folder's files with their recorded SHA-256; return what is wrong, in words."""
    return [problem for name in digests if (problem := _wrong(join(folder, name), digests[name]))]


class _Place(Protocol):
    """What local files and objects both can do; the two modules raise their own errors."""

    def exists(self, path: str) -> bool: ...
    def read(self, path: str) -> bytes: ...
    def entry(self, path: str) -> Entry: ...
    def find(self, path: str) -> list[Entry]: ...
    def open_file(self, path: str, ahead: int) -> BinaryIO: ...
    def write(self, path: str, data: bytes) -> None: ...
    def create(self, path: str, data: bytes) -> bool: ...
    def children(self, folder: str) -> list[str]: ...
    def files(self, folder: str) -> list[str]: ...
    def put(self, source: Path, folder: str, names: Sequence[str]) -> dict[str, str]: ...
    def get(self, folder: str, names: Sequence[str], target: Path) -> None: ...
    def delete(self, path: str) -> None: ...
    def sha256(self, path: str) -> str: ...


def _place(path: str) -> _Place:
    return objects if is_uri(path) else files


def _fetch(uri: str, target: Path) -> None:
    if objects.is_file(uri):
        objects.get_file(uri, target)
    else:
        download(uri, target)


def _rename_unless_there(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if not target.exists():  # else another process was faster, with the same content
            raise


def _wrong(path: str, expected: str) -> str | None:
    with Border("cannot read", path):
        try:
            found = _place(path).sha256(path)
        except FileNotFoundError:
            return f"{path}: missing"
    if found == expected:
        return None
    return f"{path}: its SHA-256 is {found[:12]}…, recorded is {expected[:12]}…"
