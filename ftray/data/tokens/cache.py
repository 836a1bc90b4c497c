"""Local copies of token shards that lie in an object store, bounded in bytes."""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ftray import storage

_NEWEST_SECONDS = 10.0  # what another process of this host has just fetched is not taken from it


@dataclass
class ShardCache:
    """Where copies lie, and the most bytes that they may take; local shards need none.

    The copies longest unused go first. A deleted one that is still open stays readable, and one
    that is needed again is fetched again.
    """

    folder: Path
    most_bytes: int
    _unseen: float = field(default=float("inf"), init=False, repr=False)

    def fetch(self, path: str) -> Path:
        """Return a local path itself, else a local copy of the file."""
        if not storage.is_uri(path):
            return Path(path)
        copy = storage.local_copy(path, self.folder)
        with suppress(OSError):
            os.utime(copy)
        self._unseen += copy.stat().st_size
        if self._unseen > self.most_bytes / 100:  # to list all copies for each would be quadratic
            self._make_room()
            self._unseen = 0
        return copy

    def _make_room(self) -> None:
        found = [(file.stat(), file) for file in self.folder.rglob("*.arrow") if file.is_file()]
        surplus = sum(stat.st_size for stat, _ in found) - self.most_bytes
        if surplus <= 0:
            return
        newest = max(stat.st_mtime for stat, _ in found)
        for stat, file in sorted(found, key=lambda entry: entry[0].st_mtime):
            if surplus <= 0 or stat.st_mtime > newest - _NEWEST_SECONDS:
                return
            file.unlink(missing_ok=True)
            surplus -= stat.st_size
