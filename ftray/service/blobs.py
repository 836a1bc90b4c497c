"""The bytes of files, by digest in the storage root: `files/<sha256>.jsonl`. Nothing is twice."""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from ftray import storage

Kind = Literal["jsonl", "csv"]
_CHUNK = 2**20


@dataclass(frozen=True)
class Measured:
    """What a file holds."""

    blob: str  # its name in the storage root
    bytes: int
    rows: int  # lines


def measure(source: BinaryIO, kind: Kind) -> Measured:
    """Read a file once, from its beginning."""
    digest, size, rows, last = hashlib.sha256(), 0, 0, b"\n"
    source.seek(0)
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
        rows += chunk.count(b"\n")
        last = chunk[-1:]
    return Measured(f"{digest.hexdigest()}.{kind}", size, rows + (last != b"\n"))


def path_of(root: str, blob: str) -> str:
    """Return where a blob lies; its name is our own, never a user's."""
    return storage.join(root, "files", blob)


def keep(root: str, source: BinaryIO, blob: str, folder: Path) -> None:
    """Put a file's bytes into the storage root, unless they are there; `folder` is scratch."""
    if storage.exists(path_of(root, blob)):
        return
    source.seek(0)
    with (folder / blob).open("wb") as copy:
        shutil.copyfileobj(source, copy, _CHUNK)
    storage.upload(folder, storage.join(root, "files"))


def chunks(root: str, blob: str) -> Iterator[bytes]:
    """Yield a blob's bytes; raises StorageError."""
    with storage.open_file(path_of(root, blob), ahead=_CHUNK) as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def drop(root: str, blob: str) -> None:
    """Delete a blob."""
    storage.delete(path_of(root, blob))


def kept(root: str) -> list[str]:
    """Return the names of all blobs."""
    return storage.names(storage.join(root, "files"))
