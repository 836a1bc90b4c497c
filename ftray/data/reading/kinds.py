"""What a file holds, told by its name."""

from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

Kind = Literal["jsonl", "json", "parquet", "csv", "text", "arrow"]
Compression = Literal["gzip", "zstd"]

KIND_NAMES = ".jsonl, .ndjson, .json, .parquet, .csv, .txt, .arrow, each also with .gz or .zst"


def is_web(path: str) -> bool:
    """Say whether a path is an address of the web: no folders there, and maybe a query."""
    return path.startswith(("http://", "https://"))


def file_name(path: str) -> str:
    """Return a path's last part, of a web address without its query."""
    return PurePosixPath(urlsplit(path).path if is_web(path) else path).name


def kind_of_file(path: str) -> Kind | None:
    """Return what a file holds, None if its suffix is unknown; `.json` may turn out as lines."""
    name = PurePosixPath(file_name(path).lower())
    suffix = PurePosixPath(name.stem).suffix if name.suffix in _COMPRESSIONS else name.suffix
    return _KINDS.get(suffix)


def compression_of_file(path: str) -> Compression | None:
    """Return how a file is compressed."""
    return _COMPRESSIONS.get(PurePosixPath(file_name(path).lower()).suffix)


_KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".txt": "text",
    ".arrow": "arrow",
}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
