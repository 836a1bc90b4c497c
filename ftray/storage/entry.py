"""What a listing shows of a file."""

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
