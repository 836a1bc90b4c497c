"""The border at which errors of file systems and object stores become words for the user."""

import errno
from types import TracebackType
from typing import Self

from ftray.errors import StorageError

_CLIENTS = (
    *("botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "azure"),
    *("huggingface_hub", "httpx", "httpx2", "requests"),
)


# By a part of the name of what an object store's client library raises.
_HINTS = {
    "Credentials": "give credentials in the environment, e.g. AWS_PROFILE or AWS_ACCESS_KEY_ID",
    "Connect": "check the network, and the endpoint if one is set (AWS_ENDPOINT_URL)",
    "ClientResponse": "check the address; it has to answer without a login",
}
_PASSING_ANSWERS = {408, 425, 429, 500, 502, 503, 504}
_PASSING_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EREMOTEIO),
}
_PASSING_NAMES = ("Connect", "Disconnect", "Timeout", "IncompleteRead", "PayloadError")
_READING = ("cannot look up", "cannot read", "cannot list")


class Border:
    """Turns the errors of file systems and object stores into a StorageError; bugs pass."""

    def __init__(self, action: str, path: str) -> None:
        self.action = action
        self.path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None and (isinstance(error, OSError) or _is_from_a_client(error)):
            reason = _told_by_the_server(error)
            message = f"{self.action} {self.path}: {_reason(reason, self.path)}"
            raise StorageError(message, _hint(reason, self.action, self.path)) from error


def may_pass(error: BaseException) -> bool:
    """Say whether the same operation may well succeed soon: a full disk, a server that is away."""
    chain = [error, *([error.__cause__] if error.__cause__ else [])]
    answers = [answer for one in chain if (answer := _http_status(one)) is not None]
    if answers:
        return any(answer in _PASSING_ANSWERS for answer in answers)
    return any(_is_passing(one) for one in chain)


def _told_by_the_server(error: BaseException) -> BaseException:
    """fsspec calls whatever a web server answers a missing file; the answer itself says more."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and cause is not None and _is_from_a_client(cause):
        return cause
    return error


def _is_from_a_client(error: BaseException) -> bool:
    """Say whether an object store's client library raised it: they have no common base class."""
    package = type(error).__module__.partition(".")[0]
    return package in _CLIENTS


def _http_status(error: BaseException) -> int | None:
    """What a server answered: each client library keeps it elsewhere."""
    if not _is_from_a_client(error):
        return None
    response = getattr(error, "response", None)  # botocore's is a dict
    if isinstance(response, dict):
        values = [response.get("ResponseMetadata", {}).get("HTTPStatusCode")]
    else:
        values = [vars(error).get(name) for name in ("status", "status_code", "code")]
        values.append(getattr(response, "status_code", None))  # requests and httpx
    return next((value for value in values if isinstance(value, int)), None)


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno in _PASSING_ERRORS:
        return True
    name = type(error).__name__
    return _is_from_a_client(error) and any(part in name for part in _PASSING_NAMES)


def _reason(error: BaseException, path: str) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()).partition(", url=")[0].replace("message=", "")
    says_the_path_again = path.endswith(text.lstrip("/"))
    if isinstance(error, FileNotFoundError) and says_the_path_again:
        return "there is no such file"
    return text or type(error).__name__


def _hint(error: BaseException, action: str, path: str) -> str:
    code = error.errno if isinstance(error, OSError) else None
    for name, hint in _HINTS.items():
        if name in type(error).__name__:
            return hint
    if code in (errno.ENOSPC, errno.EDQUOT):
        return "free some space, or choose another disk with FTRAY_HOME or storage=PATH"
    if isinstance(error, PermissionError) and action in _READING:
        return "get read access to it: as this user, or with other credentials in the environment"
    if isinstance(error, PermissionError) or code == errno.EROFS:
        return "get write access to it, or choose another root with FTRAY_HOME or storage=PATH"
    if isinstance(error, NotADirectoryError | FileExistsError):
        return "a file is where a folder should be: choose another root"
    if isinstance(error, FileNotFoundError):
        return "check the bucket and the path" if "://" in path else "check the path"
    return ""
