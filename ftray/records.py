"""Records: the small JSON files, written last and whole, that say what exists."""

import json
import re
from dataclasses import asdict, dataclass
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from ftray import storage
from ftray.config.run import NAME_PATTERN
from ftray.errors import StorageError


@dataclass(frozen=True, kw_only=True)
class Record:
    """What every record carries: the version of its schema."""

    schema: int = 1


class RecordError(StorageError):
    """A file where a record belongs is none: foreign, or damaged."""


RecordT = TypeVar("RecordT", bound=Record)


def encode(record: Record) -> bytes:
    """Return a record as the JSON text that `read_record` reads."""
    return f"{json.dumps(asdict(record), indent=1, ensure_ascii=False)}\n".encode()


def read_record(path: str, kind: type[RecordT]) -> RecordT | None:
    """Read a record, None when there is no such file.

    Raises RecordError when the file is no such record, StorageError when a newer ftray wrote it.
    """
    data = storage.read_if_exists(path)
    if data is None:
        return None
    try:
        tree = json.loads(data)
        if tree["schema"] > kind.schema:
            raise StorageError(
                f"{path}: written by a newer ftray (schema {tree['schema']}, known: {kind.schema})",
                "pip install --upgrade ftray",
            )
        return TypeAdapter(kind).validate_json(data)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors()]
        raise RecordError(f"{path}: not a record of ftray: {'; '.join(problems)}") from None
    except (ValueError, KeyError, TypeError):
        raise RecordError(f"{path}: not a record of ftray: no JSON object with a schema") from None


def check_name(name: str, what: str) -> str:
    """Return a name that may become a part of a path, or raise ValueError saying what it may be."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(
            f"{what} '{name}' is not possible: use up to 63 of a-z, 0-9, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    return name
