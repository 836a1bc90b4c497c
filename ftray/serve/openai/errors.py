"""Errors as OpenAI's clients read them: one shape, and a status that says whether to try again."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.responses import Response

from ftray.serve.protocol import Refusal, RefusedError


@dataclass(frozen=True)
class Kind:
    """A status with OpenAI's words for it."""

    status: int
    type: str
    code: str | None


INVALID = Kind(400, "invalid_request_error", "invalid_value")
UNKNOWN_FIELD = Kind(400, "invalid_request_error", "unknown_parameter")
UNSUPPORTED = Kind(400, "invalid_request_error", "unsupported_parameter")
MISSING_FIELD = Kind(400, "invalid_request_error", "missing_required_parameter")
NO_JSON = Kind(400, "invalid_request_error", "invalid_json")
TOO_LONG = Kind(400, "invalid_request_error", "context_length_exceeded")
NO_KEY = Kind(401, "invalid_request_error", "invalid_api_key")
NOT_ALLOWED = Kind(403, "permission_error", "insufficient_permissions")
NO_MODEL = Kind(404, "invalid_request_error", "model_not_found")
TOO_LARGE = Kind(413, "invalid_request_error", "request_too_large")
RATE_LIMIT = Kind(429, "rate_limit_error", "rate_limit_exceeded")
GONE = Kind(499, "invalid_request_error", "client_closed_request")
BUG = Kind(500, "server_error", "internal_error")
DRAINING = Kind(503, "server_error", "draining")
UNAVAILABLE = Kind(503, "server_error", "unavailable")


@dataclass(eq=False)  # exceptions are hashed
class ApiError(Exception):
    """What a request is answered instead of a result."""

    kind: Kind
    message: str
    param: str | None = None
    retry_after: float | None = None  # seconds
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, object]:
        """Return the JSON object, the same in an answer and in a stream."""
        inner = {
            "message": self.message,
            "type": self.kind.type,
            "param": self.param,
            "code": self.kind.code,
        }
        return {"error": inner}

    def response(self) -> Response:
        """Return the HTTP answer."""
        headers = dict(self.headers)
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        return json_response(self.body(), self.kind.status, headers)


def json_response(
    tree: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return JSON in ASCII: nothing that a user sends, lone surrogates too, can fail to encode."""
    return Response(json.dumps(tree), status, headers, media_type="application/json")


def refused(error: RefusedError) -> ApiError:
    """Translate an engine's refusal."""
    kind, retry_after = _REFUSALS[error.code]
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    return ApiError(kind, message, retry_after=retry_after)


def http_error(status: int, detail: str, headers: Mapping[str, str] | None) -> ApiError:
    """Translate what the framework raises by itself: an unknown path, a wrong method."""
    kind = Kind(status, "invalid_request_error" if status < 500 else "server_error", None)
    return ApiError(kind, detail, headers=headers or {})


# deadline: 504 and not 408, which says that the client was slow to send; clients retry both.
# bad_adapter: 400, since it fails again however often a client tries.
_REFUSALS: dict[Refusal, tuple[Kind, float | None]] = {
    "context_length": (TOO_LONG, None),
    "queue_full": (Kind(429, "rate_limit_error", "queue_full"), 1),
    "draining": (DRAINING, 5),
    "bad_adapter": (Kind(400, "invalid_request_error", "model_not_servable"), None),
    "bad_grammar": (Kind(400, "invalid_request_error", "invalid_schema"), None),
    "lost": (UNAVAILABLE, 2),
    "deadline": (Kind(504, "server_error", "deadline_exceeded"), 5),
    "internal": (BUG, None),
}
