"""The border at which a database's errors become words for the user."""

import os
from types import TracebackType
from typing import Self

from sqlalchemy import exc

from ftray.errors import StorageError, first_line


class Border:
    """Turns what a database or its server refuses into a StorageError; bugs pass."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if isinstance(error, exc.SQLAlchemyError | OSError) and (said := _reason(error)):
            message = f"database {self.name}: {said}"
            raise StorageError(message, _hint(said)) from error


# By a part of what SQLite, libpq or a PostgreSQL server say.
_HINTS = {
    "database is locked": "another process writes to it or holds it: find it with `fuser FILE`",
    "not a database": "move the file away, or put a saved copy in its place",
    "malformed": "move the file away, or put a saved copy in its place",
    "unable to open": "it has to be a file in a folder that this user may write to",
    "readonly": "get write access to the file and its folder",
    "disk is full": "free some space, or choose another disk with FTRAY_HOME",
    "permission denied": "the user of FTRAY_DATABASE has to be allowed to create tables",
    "authentication failed": "check the user and the password in FTRAY_DATABASE",
    "does not exist": "create it (createdb NAME), or check FTRAY_DATABASE",
}
_FOREIGN = (exc.OperationalError, exc.InterfaceError, exc.InternalError, exc.DatabaseError)


def _reason(error: exc.SQLAlchemyError | OSError) -> str:
    """What was refused; empty for a bug of ours, such as a wrong statement."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, exc.TimeoutError):
        return "all connections are in use"
    if not isinstance(error, exc.DBAPIError) or error.orig is None:
        return ""
    said = first_line(error.orig)
    # a subclass of DatabaseError that is not named here is about statements and values
    is_foreign = type(error) in _FOREIGN or "permission denied" in said
    return said if is_foreign else ""


def _hint(said: str) -> str:
    for part, hint in _HINTS.items():
        if part in said:
            return hint
    return (
        "check FTRAY_DATABASE, and that the server runs" if os.environ.get("FTRAY_DATABASE") else ""
    )
