"""What listings show of a file."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A file or a folder; `stamp` changes with a file's content, as far as its store tells."""

    path: str
    size: int | None
    """Bytes; None where a server tells no size, or sends no part of a file: such a one can only
    be read from its beginning to its end."""
    stamp: str
    is_folder: bool = False


@dataclass(frozen=True)
class Held:
    """A file that takes space; its name is relative to the folder that was asked for.

    `used` is the time of the last reading where the file system keeps it, else that of the last
    change; both in unix seconds.
    """

    name: str
    size: int
    changed: float
    used: float
