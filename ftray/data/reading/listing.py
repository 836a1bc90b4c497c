"""The files that a path, glob, folder or URI names."""

import glob
import json
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ftray import storage
from ftray.data.reading.blocks import reading
from ftray.data.reading.kinds import KIND_NAMES, is_web, kind_of_file
from ftray.errors import DataError, StorageError, did_you_mean
from ftray.storage import is_uri
from ftray.storage.entry import Entry


def list_path(path: str, split: str) -> list[Entry]:
    """Return the files in the order of their names; the split tells those of a saved dataset."""
    path = path.removeprefix("file://")
    with reading(path):
        return _in_store(path, split) if is_uri(path) else _on_disk(path, split)


def in_folder(folder: str, split: str) -> list[Entry]:
    """Return the data files in a folder: all that are visible, or those of a saved dataset."""
    entries = {entry.path.removeprefix(folder).lstrip("/"): entry for entry in storage.find(folder)}
    _refuse_tables(folder, entries)
    if "dataset_dict.json" in entries:
        folder = _split_folder(folder, split)
        return _saved(folder)
    if "state.json" in entries and "dataset_info.json" in entries:
        return _saved(folder)
    visible = {name: entry for name, entry in entries.items() if not _is_hidden(name.split("/"))}
    found = [entry for name, entry in visible.items() if kind_of_file(name)]
    if not found:
        names = ", ".join(Path(name).name for name in list(visible)[:5]) or "nothing"
        raise DataError(
            f"{folder}: no data files in it (found: {names})", f"ftray reads {KIND_NAMES}"
        )
    return found


def _on_disk(path: str, split: str) -> list[Entry]:
    place = Path(path).expanduser()
    if place.is_dir():
        return in_folder(str(place), split)
    if place.is_file():
        return [storage.entry(str(place))]
    if glob.has_magic(path):
        names = sorted(set(glob.glob(str(place), recursive=True)))  # two `**` meet a file twice
        if found := [storage.entry(name) for name in names if Path(name).is_file()]:
            return found
        raise DataError(f"{path}: matches no file", _neighbours(path))
    if place.is_symlink():
        reason = f"it links to {place.readlink()}, which is not there"
        raise DataError(f"{path}: {reason}", "copy the file itself to this machine")
    raise DataError(f"{path}: no such file", _neighbours(str(place)))


def _in_store(uri: str, split: str) -> list[Entry]:
    if is_web(uri) and "*" in uri:
        raise DataError(f"{uri}: the web has no folders to search", "list the files one by one")
    is_pattern = not is_web(uri) and glob.has_magic(uri)
    if is_pattern and (found := _matching(uri)):
        return found
    try:
        entry = storage.entry(uri)  # of a file whose name looks like a pattern, too
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError) and not is_web(uri):
            wrong = "matches no file" if is_pattern else "no such file"
            raise DataError(f"{uri}: {wrong}", _neighbours(uri)) from None
        raise
    return in_folder(uri, split) if entry.is_folder else [entry]


def _matching(pattern: str) -> list[Entry]:
    """Return the files of a glob; as on disk, it meets nothing hidden that it does not name."""
    start = len(re.split(r"[*?[]", pattern, maxsplit=1)[0].rpartition("/")[0])
    names_hidden = "/." in pattern[start:]
    found = storage.find(pattern)
    return [entry for entry in found if names_hidden or "/." not in entry.path[start:]]


_TABLES = {
    "_delta_log": "a Delta table",
    "_versions": "a Lance dataset",
    ".hoodie": "a Hudi table",
}


def _refuse_tables(folder: str, names: Iterable[str]) -> None:
    """Refuse tables whose files hold rows that their log says are deleted."""
    for name in names:
        found = [_TABLES[part] for part in name.split("/")[:-1] if part in _TABLES]
        if name.endswith(".metadata.json") and "metadata" in name.split("/"):
            found.append("an Iceberg table")
        if found:
            hint = "export its rows to Parquet: its files hold deleted rows too"
            raise DataError(f"{folder}: {found[0]}, which ftray does not read", hint)


def _split_folder(folder: str, split: str) -> str:
    splits: list[str] = _noted(folder, "dataset_dict.json", "splits")
    if split not in splits:
        raise DataError(f"{folder}: there is no split '{split}'", did_you_mean(split, splits))
    return storage.join(folder, split)


def _saved(folder: str) -> list[Entry]:
    """Return the files of a dataset that was saved to disk, in its own order."""
    files: list[dict[str, str]] = _noted(folder, "state.json", "_data_files")
    return [storage.entry(storage.join(folder, file["filename"])) for file in files]


def _noted(folder: str, name: str, key: str) -> Any:
    """Return what `datasets` noted beside a saved dataset."""
    path = storage.join(folder, name)
    try:
        return json.loads(storage.read(path))[key]
    except (ValueError, KeyError, TypeError):
        reason = f"it does not hold the '{key}' of a saved dataset"
        raise DataError(f"{path}: {reason}", "save or copy the dataset again") from None


def _is_hidden(parts: Iterable[str]) -> bool:
    return any(part.startswith((".", "_")) for part in parts)  # as in Spark: _SUCCESS, .crc


def _neighbours(path: str) -> str:
    folder, _, name = path.rpartition("/")
    if is_uri(path) and not is_uri(folder):
        return f"there is no bucket {path}"
    names = storage.names(folder)
    if not names:
        return f"there is no {'bucket or ' * is_uri(path)}folder {folder}"
    if close := get_close_matches(name, names, n=1, cutoff=0.6):
        return f"did you mean '{folder}/{close[0]}'?"
    data = [name for name in names if kind_of_file(name) and not _is_hidden([name])]
    return f"in {folder}: {', '.join(data[:8]) or 'no data files'}"
