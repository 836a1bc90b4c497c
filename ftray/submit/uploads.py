"""Local data of a run, put where its cluster can read it: under the digest of its content."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ftray import storage
from ftray.config.data import SourceConfig, Sources, sources_of
from ftray.data.reading.kinds import compression_of_file
from ftray.data.reading.listing import list_path
from ftray.errors import ConfigError

logger = logging.getLogger(__name__)

_GIB = 2**30
# Written last, and again by whoever wants the same content: its age is what `ftray gc` goes by.
# Whoever lists the folder as data skips it.
_DONE = "_SUCCESS"


@dataclass(frozen=True)
class _Local:
    """One file of this machine, and what it is called in its folder there."""

    path: Path
    name: str
    size: int


class Uploads:
    """Sends files below a storage root, each content once, and no more than a limit in all."""

    def __init__(self, root: str, most_gib: float) -> None:
        self._root = storage.join(root, "uploads")
        self._most = most_gib
        self._left = int(most_gib * _GIB)

    def sources(self, sources: Sources, key: str) -> list[SourceConfig]:
        """Return the sources with local files replaced by copies behind the root's URI."""
        return [self._source(one, key) for one in sources_of(sources)]

    def path(self, path: str, key: str) -> str:
        """Upload a file, a folder or what a glob meets; return where it is."""
        given = path.removeprefix("file://")
        if storage.is_uri(given):
            return given
        place = Path(given).expanduser()
        if place.is_dir():
            return self._folder(_visible(place), key, path)
        entries = list_path(given, "train")
        if len(entries) == 1:
            return self._file(Path(entries[0].path), key, path)
        # a glob: flat, in its order, under names that nothing hides
        found = [
            _Local(Path(one.path), f"{number:06d}-{Path(one.path).name}", one.size or 0)
            for number, one in enumerate(entries)
        ]
        return self._folder(found, key, path)

    def _source(self, source: SourceConfig, key: str) -> SourceConfig:
        if source.path is None:
            if source.hub is not None and Path(source.hub).is_absolute():
                raise ConfigError(
                    f"{key}: the dataset {source.hub} is a folder of this machine",
                    f"name its files as {key}.path: they are uploaded",
                )
            return source
        return source.model_copy(update={"path": self.path(source.path, key)})

    def _file(self, file: Path, key: str, said: str) -> str:
        name = f"data{_suffixes(file)}"
        local = _Local(file, name, file.stat().st_size)
        self._take(local.size, key, said)
        return storage.join(self._sent(storage.sha256(file), [local], said), name)

    def _folder(self, files: Sequence[_Local], key: str, said: str) -> str:
        self._take(sum(one.size for one in files), key, said)
        lines = [f"{storage.sha256(one.path)} {one.name}\n" for one in files]
        return self._sent(hashlib.sha256("".join(lines).encode()).hexdigest(), files, said)

    def _sent(self, digest: str, files: Sequence[_Local], said: str) -> str:
        target = storage.join(self._root, digest)
        if not storage.exists(storage.join(target, _DONE)):
            logger.info("uploading %s (%d files) to %s", said, len(files), target)
            for one in files:
                storage.upload_file(one.path, storage.join(target, one.name))
        storage.write(storage.join(target, _DONE), b"")
        return target

    def _take(self, size: int, key: str, said: str) -> None:
        """Count bytes, whether or not they are there already: the verdict is the same each time."""
        self._left -= size
        if self._left < 0:
            raise ConfigError(
                f"{key}: {said} has {size / _GIB:.3g} GiB, and no more than {self._most:g} GiB of a"
                " run's data are uploaded",
                f"copy it to an object store once and name it there ({key}: s3://…), or raise"
                " upload_gib in the cluster file",
            )


def _visible(folder: Path) -> list[_Local]:
    """All files below a folder but hidden ones, which no reader looks at."""
    names = {file: file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file()}
    return [
        _Local(file, name.as_posix(), file.stat().st_size)
        for file, name in names.items()
        if not any(part.startswith((".", "_")) for part in name.parts)
    ]


def _suffixes(file: Path) -> str:
    """What tells its kind, as .jsonl.gz; no more of a name that may say anything."""
    return "".join(file.suffixes[-2 if compression_of_file(file.name) else -1 :])
