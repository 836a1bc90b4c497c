"""Local files that appear whole: written beside their place, synced, then renamed or linked."""

import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ftray.storage.entry import Entry, Held

STAGED = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


def exists(path: str) -> bool:
    """Say whether a file or a folder is there."""
    return Path(path).exists()


def read(path: str) -> bytes:
    """Return a file's content."""
    return Path(path).read_bytes()


def entry(path: str) -> Entry:
    """Return a file's size and stamp, or say that it is a folder."""
    status = os.stat(path)
    stamp = f"{status.st_size}-{status.st_mtime_ns}"
    return Entry(path, status.st_size, stamp, is_folder=stat.S_ISDIR(status.st_mode))


def find(folder: str) -> list[Entry]:
    """Return all files below a folder, in the order of their names."""
    return [entry(os.path.join(folder, name)) for name in files(folder)]


def contents(folder: str) -> list[Held]:
    """Return all files below a folder, half-written ones too; a link counts as what it is."""
    paths = [os.path.join(where, name) for where, _, found in os.walk(folder) for name in found]
    return [held for path in sorted(paths) if (held := _held(folder, path)) is not None]


def open_file(path: str, ahead: int) -> BinaryIO:
    """Open a file; the system reads ahead by itself."""
    return Path(path).open("rb")


def write(path: str, data: bytes) -> None:
    """Put a file whole: a reader sees the old content or the new one, also after a power cut."""
    with _staged(Path(path), [data]) as staged:
        staged.replace(path)


def create(path: str, data: bytes) -> bool:
    """Put a file whole unless there is one: a link, unlike a rename, never replaces."""
    with _staged(Path(path), [data]) as staged:
        try:
            os.link(staged, path)
        except FileExistsError:
            # NFS may lose the answer of a link that was made: then we hold the second name
            return staged.stat().st_nlink == 2
    return True


def children(folder: str) -> list[str]:
    """Return the names of a folder's direct children."""
    return [name for name in os.listdir(folder) if not STAGED.fullmatch(name)]


def files(folder: str) -> list[str]:
    """Return the names of all files below a folder, relative to it, sorted."""
    found = [path for path in Path(folder).rglob("*") if path.is_file()]
    whole = [path for path in found if not STAGED.fullmatch(path.name)]
    return sorted(path.relative_to(folder).as_posix() for path in whole)


def put(source: Path, folder: str, names: Sequence[str]) -> dict[str, str]:
    """Copy named files of `source` into a folder; return their SHA-256."""
    return {name: _copy(source / name, Path(folder, name)) for name in names}


def put_file(source: Path, target: str) -> None:
    """Copy one file."""
    _copy(source, Path(target))


def get(folder: str, names: Sequence[str], target: Path) -> None:
    """Copy named files of a folder into `target`."""
    put(Path(folder), str(target), names)


def delete(path: str) -> None:
    """Delete a file or a folder, if it is there; of a folder nobody ever finds a part."""
    if os.path.isdir(path) and not os.path.islink(path):
        away = staging_name(Path(path))
        with suppress(FileNotFoundError):  # another process was faster
            os.rename(path, away)
            shutil.rmtree(away)
        return
    with suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(path)


def sha256(path: str) -> str:
    """Return a file's SHA-256 in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def staging_name(path: Path) -> Path:
    """Return a new name beside `path`, which listings leave out."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _held(folder: str, path: str) -> Held | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None  # a file that was renamed or deleted since
    used = max(status.st_mtime, status.st_atime)
    return Held(Path(path).relative_to(folder).as_posix(), status.st_size, status.st_mtime, used)


@contextmanager
def _staged(path: Path, chunks: Iterable[bytes]) -> Iterator[Path]:
    """Yield a whole file beside `path`, safe on disk; afterwards it is gone or renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = staging_name(path)
    try:
        with staged.open("xb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        yield staged
    finally:
        staged.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make new names in a folder survive a power cut, as the files' contents do."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _copy(source: Path, target: Path) -> str:
    digest = hashlib.sha256()

    def chunks() -> Iterator[bytes]:
        with source.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
                yield chunk

    with _staged(target, chunks()) as staged:
        staged.replace(target)
    return digest.hexdigest()
