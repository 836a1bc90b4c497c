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
from ftray.storage.entry import Entry, Held
from ftray.storage.patience import tried

RECORD = "record.json"


def storage_root(configured: str | None) -> str:
    """Return the configured root, else `$FTRAY_HOME`, else `~/.ftray`; local ones absolute."""
    root = (configured or os.environ.get("FTRAY_HOME") or "~/.ftray").removeprefix("file://")
    return root if is_uri(root) else str(Path(root).expanduser().absolute())


def local_cache(root: str) -> Path:
    """Where this machine keeps what can be made again: below the root, else the user's."""
    if not is_uri(root):
        return Path(root) / "cache"
    home = os.environ.get("FTRAY_HOME", "")
    return Path("~/.cache/ftray").expanduser() if is_uri(home) or not home else Path(home) / "cache"


def is_uri(path: str) -> bool:
    """Say whether a path is reached through fsspec."""
    return "://" in path


def join(root: str, *parts: str) -> str:
    """Join parts below a root; the parts are trusted, so check names that users give first."""
    return "/".join([root if root.endswith("://") else root.rstrip("/"), *parts])


def exists(path: str) -> bool:
    """Say whether a file or a folder is there; behind a URI a folder is there if it has files."""
    return tried("cannot look up", path, lambda: _place(path).exists(path))


def read(path: str) -> bytes:
    """Return a file's content."""
    return tried("cannot read", path, lambda: _place(path).read(path))


def read_if_exists(path: str) -> bytes | None:
    """Return a file's content, None when there is no such file."""
    return tried("cannot read", path, lambda: _read_if_exists(path))


def write(path: str, data: bytes) -> None:
    """Put a file whole: a reader sees the old content or the new one, never a part."""
    tried("cannot write", path, lambda: _place(path).write(path, data))


def create(path: str, data: bytes) -> bool:
    """Put a file whole if there is none, else return False; of many creators exactly one wins."""
    is_sure = not is_uri(path)  # a client library tries again by itself

    def put() -> bool:
        nonlocal is_sure
        was_sure, is_sure = is_sure, False
        # the answer to an earlier try of ours may have been lost on its way
        return _place(path).create(path, data) or (not was_sure and _read_if_exists(path) == data)

    return tried("cannot create", path, put)


def names(folder: str) -> list[str]:
    """Return the sorted names of a folder's direct children; none when it is missing."""
    return tried("cannot list", folder, lambda: _names(folder))


def entry(path: str) -> Entry:
    """Return a file's size and stamp, or say that it is a folder."""
    return tried("cannot look up", path, lambda: _place(path).entry(path))


def find(path: str) -> list[Entry]:
    """Return all files below a folder, in the order of their names; of a URI also those of a glob.

    Every path starts as the one given does, so what else a URI says about its store is kept.
    """
    return tried("cannot list", path, lambda: _place(path).find(path))


def contents(folder: str) -> list[Held]:
    """Return all that takes space below a folder, half-written files too; none if it is missing."""
    return tried("cannot list", folder, lambda: _place(folder).contents(folder))


def is_staging_name(name: str) -> bool:
    """Say whether a file or folder of this name is only being written, or was to its end."""
    return files.STAGED.fullmatch(name) is not None


def open_file(path: str, *, ahead: int = 0) -> BinaryIO:
    """Open a file for reading; behind a URI a read is one request, or fetches `ahead` bytes.

    What is read later raises the foreign errors: read inside a Border.
    """
    return tried("cannot read", path, lambda: _place(path).open_file(path, ahead))


def upload(source: Path, folder: str, *, last: tuple[str, ...] = ()) -> dict[str, str]:
    """Copy a local folder's files, but those named in `last`; return each one's SHA-256.

    Nothing marks the copy as whole: the caller writes the record afterwards.
    """
    wanted = [name for name in files.files(str(source)) if name not in last]
    return tried("cannot copy to", folder, lambda: _place(folder).put(source, folder, wanted))


def upload_file(source: Path, target: str) -> None:
    """Copy one local file; the copy appears whole."""
    tried("cannot write", target, lambda: _place(target).put_file(source, target))


def download(folder: str, target: Path) -> None:
    """Copy all files of a folder into a local one."""
    tried("cannot copy", folder, lambda: _download(folder, target))


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
    try:
        tried("cannot copy", path, lambda: _fetch(path, staged))
        tried("cannot write", str(target), lambda: _rename_unless_there(staged, target))
    finally:
        files.delete(str(staged))
    return target


def delete(path: str, *, keep: str | None = None) -> None:
    """Delete a file, or a folder with all in it but the child `keep`; missing ones are fine.

    A folder's record goes first, so that what is half deleted no longer exists.
    """
    tried("cannot delete", path, lambda: _delete(path, keep))


def sha256(path: Path) -> str:
    """Return a local file's SHA-256 in hex."""
    return tried("cannot read", str(path), lambda: files.sha256(str(path)))


def verify(folder: str, digests: Mapping[str, str]) -> list[str]:
    """Compare a folder's files with their recorded SHA-256; return what is wrong, in words."""
    return [problem for name in digests if (problem := _wrong(join(folder, name), digests[name]))]


class _Place(Protocol):
    """What local files and objects both can do; the two modules raise their own errors."""

    def exists(self, path: str) -> bool: ...
    def read(self, path: str) -> bytes: ...
    def entry(self, path: str) -> Entry: ...
    def find(self, path: str) -> list[Entry]: ...
    def contents(self, folder: str) -> list[Held]: ...
    def open_file(self, path: str, ahead: int) -> BinaryIO: ...
    def write(self, path: str, data: bytes) -> None: ...
    def create(self, path: str, data: bytes) -> bool: ...
    def children(self, folder: str) -> list[str]: ...
    def files(self, folder: str) -> list[str]: ...
    def put(self, source: Path, folder: str, names: Sequence[str]) -> dict[str, str]: ...
    def put_file(self, source: Path, target: str) -> None: ...
    def get(self, folder: str, names: Sequence[str], target: Path) -> None: ...
    def delete(self, path: str) -> None: ...
    def sha256(self, path: str) -> str: ...


def _place(path: str) -> _Place:
    return objects if is_uri(path) else files


def _read_if_exists(path: str) -> bytes | None:
    try:
        return _place(path).read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _names(folder: str) -> list[str]:
    try:
        return sorted(_place(folder).children(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _download(folder: str, target: Path) -> None:
    wanted = _place(folder).files(folder)
    if not wanted:
        raise FileNotFoundError(errno.ENOENT, "no such folder, or an empty one")
    _place(folder).get(folder, wanted, target)


def _fetch(uri: str, target: Path) -> None:
    if objects.is_file(uri):
        objects.get_file(uri, target)
    else:
        _download(uri, target)


def _delete(path: str, keep: str | None) -> None:
    surplus = [name for name in _names(path) if name != keep] if keep else []
    for name in (RECORD, *surplus):
        _place(path).delete(join(path, name))
    if not keep:
        _place(path).delete(path)


def _rename_unless_there(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if not target.exists():  # else another process was faster, with the same content
            raise


def _wrong(path: str, expected: str) -> str | None:
    found = tried("cannot read", path, lambda: _sha256_if_exists(path))
    if found is None:
        return f"{path}: missing"
    if found == expected:
        return None
    return f"{path}: its SHA-256 is {found[:12]}…, recorded is {expected[:12]}…"


def _sha256_if_exists(path: str) -> str | None:
    try:
        return _place(path).sha256(path)
    except FileNotFoundError:
        return None
