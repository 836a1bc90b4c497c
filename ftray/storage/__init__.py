"""Files of the storage root, on a local path or behind a URI: they appear whole, or not at all.

A path is a `str` in which `/` separates, so that `s3://bucket/key` is one too. Object stores know
neither rename nor append: nothing here needs them. All errors come out as StorageError.
"""

import errno
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Protocol, Self

from ftray.errors import StorageError
from ftray.storage import files, objects

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
    with _Border("cannot look up", path):
        return _place(path).exists(path)


def read(path: str) -> bytes:
    """Return a file's content."""
    with _Border("cannot read", path):
        return _place(path).read(path)


def read_if_exists(path: str) -> bytes | None:
    """Return a file's content, None when there is no such file."""
    with _Border("cannot read", path):
        try:
            return _place(path).read(path)
        except (FileNotFoundError, NotADirectoryError):
            return None


def write(path: str, data: bytes) -> None:
    """Put a file whole: a reader sees the old content or the new one, never a part."""
    with _Border("cannot write", path):
        _place(path).write(path, data)


def create(path: str, data: bytes) -> bool:
    """Put a file whole if there is none, else return False; of many creators exactly one wins."""
    with _Border("cannot create", path):
        return _place(path).create(path, data)


def names(folder: str) -> list[str]:
    """Return the sorted names of a folder's direct children; none when it is missing."""
    with _Border("cannot list", folder):
        try:
            return sorted(_place(folder).children(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []


def upload(source: Path, folder: str, *, last: tuple[str, ...] = ()) -> dict[str, str]:
    """Copy a local folder's files, but those named in `last`; return each one's SHA-256.

    Nothing marks the copy as whole: the caller writes the record afterwards.
    """
    with _Border("cannot copy to", folder):
        wanted = [name for name in files.files(str(source)) if name not in last]
        return _place(folder).put(source, folder, wanted)


def download(folder: str, target: Path) -> None:
    """Copy all files of a folder into a local one."""
    with _Border("cannot copy", folder):
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
    with _Border("cannot copy", path):
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
    with _Border("cannot delete", path):
        surplus = [name for name in names(path) if name != keep] if keep else []
        for name in (RECORD, *surplus):
            _place(path).delete(join(path, name))
        if not keep:
            _place(path).delete(path)


def sha256(path: Path) -> str:
    """Return a local file's SHA-256 in hex."""
    with _Border("cannot read", str(path)):
        return files.sha256(str(path))


def verify(folder: str, digests: Mapping[str, str]) -> list[str]:
    """Compare a folder's files with their recorded SHA-256; return what is wrong, in words."""
    return [problem for name in digests if (problem := _wrong(join(folder, name), digests[name]))]


class _Place(Protocol):
    """What local files and objects both can do; the two modules raise their own errors."""

    def exists(self, path: str) -> bool: ...
    def read(self, path: str) -> bytes: ...
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
    with _Border("cannot read", path):
        try:
            found = _place(path).sha256(path)
        except FileNotFoundError:
            return f"{path}: missing"
    if found == expected:
        return None
    return f"{path}: its SHA-256 is {found[:12]}…, recorded is {expected[:12]}…"


class _Border:
    """Turns the errors of file systems and object stores into a StorageError; bugs pass."""

    def __init__(self, action: str, path: str) -> None:
        self.action = action
        self.path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None and (isinstance(error, OSError) or _is_from_a_client(error)):
            message = f"{self.action} {self.path}: {_reason(error, self.path)}"
            raise StorageError(message, _hint(error, self.path)) from error


def _is_from_a_client(error: BaseException) -> bool:
    """Say whether an object store's client library raised it: they have no common base class."""
    package = type(error).__module__.partition(".")[0]
    return package in ("botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "azure")


def _reason(error: BaseException, path: str) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    says_the_path_again = path.endswith(text.lstrip("/"))
    if isinstance(error, FileNotFoundError) and says_the_path_again:
        return "there is no such file"
    return text or type(error).__name__


def _hint(error: BaseException, path: str) -> str:
    code = error.errno if isinstance(error, OSError) else None
    if "Credentials" in type(error).__name__:
        return "give credentials in the environment, e.g. AWS_PROFILE or AWS_ACCESS_KEY_ID"
    if "Connect" in type(error).__name__:
        return "check the network, and the endpoint if one is set (AWS_ENDPOINT_URL)"
    if code in (errno.ENOSPC, errno.EDQUOT):
        return "free some space, or choose another disk with FTRAY_HOME or storage=PATH"
    if isinstance(error, PermissionError) or code == errno.EROFS:
        return "get write access to it, or choose another root with FTRAY_HOME or storage=PATH"
    if isinstance(error, NotADirectoryError | FileExistsError):
        return "a file is where a folder should be: choose another root"
    if isinstance(error, FileNotFoundError):
        return "check the bucket and the path" if is_uri(path) else "check the path"
    return ""
