"""The border at which errors of Ray's Jobs API become words for the user."""

from types import TracebackType
from typing import Self

import aiohttp
import requests
from pydantic import ValidationError
from ray.exceptions import AuthenticationError

from ftray.errors import ClusterError, first_line


class RefusedError(Exception):
    """The cluster answered with an HTTP status that is no success."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text


class Border:
    """Turns what goes wrong between here and the cluster into a ClusterError; bugs pass."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if isinstance(error, _FOREIGN):
            raise _told(self.address, error) from error


_FOREIGN = (
    RefusedError,
    AuthenticationError,
    requests.RequestException,
    aiohttp.ClientError,
    ValidationError,
    OSError,
    RuntimeError,
)
_TOKEN = (
    "name the file with the cluster's token: token_file in the cluster file, or RAY_AUTH_TOKEN_PATH"
)
_ADDRESS = "check the address, and that the cluster is up and its dashboard listens there"


def _told(address: str, error: BaseException) -> ClusterError:
    match error:
        case AuthenticationError():
            how = "wants a token" if "Missing" in str(error) else "does not know this token"
            return ClusterError(f"the cluster at {address} {how}", _TOKEN)
        case aiohttp.WSServerHandshakeError(status=status) if status in (401, 403):
            return ClusterError(f"the cluster at {address} does not know this token", _TOKEN)
        case requests.Timeout():
            return ClusterError(f"the cluster at {address} does not answer", _ADDRESS)
        case requests.JSONDecodeError() | ValidationError():
            return ClusterError(f"what answers at {address} is no Ray dashboard", _ADDRESS)
        case requests.ConnectionError() | aiohttp.ClientConnectionError():
            return ClusterError(f"there is no Ray dashboard at {address}", _ADDRESS)
        case RefusedError():
            said = f"{_reason(error.text)} (HTTP {error.status})"
            return ClusterError(f"the cluster at {address} refused: {said}")
    return ClusterError(f"the cluster at {address}: {first_line(error)}")


def _reason(text: str) -> str:
    """The last line of a traceback of the server's, or what else it said."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it did not say why"
