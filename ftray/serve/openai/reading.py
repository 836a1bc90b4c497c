"""From a request's bytes to its checked body, or to the one error that tells what is wrong."""

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request

from ftray.errors import did_you_mean
from ftray.serve.openai.errors import (
    GONE,
    INVALID,
    MISSING_FIELD,
    NO_JSON,
    TOO_LARGE,
    UNKNOWN_FIELD,
    UNSUPPORTED,
    ApiError,
)
from ftray.serve.openai.strict import Strict

Body = TypeVar("Body", bound=Strict)


async def read_body(request: Request, kind: type[Body], max_bytes: int) -> Body:
    """Read a body of at most so many bytes; raises ApiError."""
    data = await _read(request, max_bytes)
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _translated(first, data, kind) from None


async def _read(request: Request, max_bytes: int) -> bytes:
    too_large = ApiError(TOO_LARGE, f"the body is larger than {max_bytes} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise too_large
    data = bytearray()
    try:
        async for chunk in request.stream():
            data += chunk
            if len(data) > max_bytes:
                raise too_large
    except ClientDisconnect:
        raise ApiError(GONE, "the client has gone") from None
    return bytes(data)


def _translated(error: ErrorDetails, data: bytes, kind: type[Strict]) -> ApiError:
    if error["type"] == "json_invalid":
        return ApiError(NO_JSON, error["msg"])
    field = str(error.get("ctx", {}).get("field", ""))
    path = _path([*error["loc"], *([field] if field else [])], json.loads(data), error["type"])
    where = f"{path}: " if path else ""
    message = f"{where}{_said(error)}"
    match error["type"]:
        case "missing":
            return ApiError(MISSING_FIELD, f"missing: '{path}'", path)
        case "extra_forbidden":
            hint = did_you_mean(path, kind.model_fields, otherwise="")
            message = f"'{path}' is not known" + (f"; {hint}" if hint else "")
            return ApiError(UNKNOWN_FIELD, message, path)
        case "unsupported":
            return ApiError(UNSUPPORTED, message, path or None)
    return ApiError(INVALID, message, path or None)


def _said(error: ErrorDetails) -> str:
    return error["msg"].removeprefix("Value error, ")


def _path(location: Sequence[int | str], tree: Any, kind: str) -> str:
    """Return a dotted path: of pydantic's location what is in the body, without names of types."""
    found: list[str] = []
    for part in location:
        if _has(tree, part):
            tree = tree[part]
        elif not (kind == "missing" and part == location[-1]):
            continue
        found.append(str(part))
    return ".".join(found)[:200]


def _has(tree: Any, part: int | str) -> bool:
    if isinstance(tree, list):
        return isinstance(part, int) and part < len(tree)
    return isinstance(tree, dict) and part in tree
