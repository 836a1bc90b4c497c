"""Errors that a user can act on: what went wrong and where, and what to do next."""

from collections.abc import Collection
from difflib import get_close_matches


class FtrayError(Exception):
    """A failure with a message for the user and a hint for the next step.

    Both arguments are positional, so the error survives pickling on its way from a worker.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class ConfigError(FtrayError):
    """A run, cluster, search or serve file is wrong; nothing has been started."""

    exit_code = 2


class DataError(FtrayError):
    """The data cannot be read, or is not what the config says."""

    exit_code = 3


class ClusterError(FtrayError):
    """The cluster cannot be reached, or has not what the run needs."""

    exit_code = 4


class OccupiedError(ClusterError):
    """The cluster has what the run needs, but others use it now."""


class TrainError(FtrayError):
    """Training failed, or its result did not pass verification."""

    exit_code = 5


class OutOfMemoryError(TrainError):
    """A worker ran out of memory: retrying the same run would fail again."""


class RegistryError(FtrayError):
    """An adapter, version or alias does not exist, or cannot be changed as asked."""

    exit_code = 6


class ModelError(ConfigError):
    """A base model or adapter that the config names cannot be loaded, or is not supported."""


class ServeError(FtrayError):
    """A model cannot be served, or not as asked."""

    exit_code = 7


class StorageError(FtrayError):
    """The storage root cannot be read or written."""

    exit_code = 8


def did_you_mean(word: object, known: Collection[str], otherwise: str | None = None) -> str:
    """Return the hint "did you mean 'x'?" for a near miss, else `otherwise` (None: the choices)."""
    if close := get_close_matches(str(word), known, n=1):
        return f"did you mean '{close[0]}'?"
    return f"expected one of: {', '.join(known)}" if otherwise is None else otherwise


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text: a foreign one may go on with a traceback."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
