"""A multipart upload, streamed to a temporary file: never whole in memory, never too large."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from ftray.serve.openai.errors import GONE, INVALID, MISSING_FIELD, UNKNOWN_FIELD, ApiError
from ftray.service.refusals import FILE_TOO_LARGE

PURPOSE = "fine-tune"
_FIELDS = {"purpose", "file", "expires_after[anchor]", "expires_after[seconds]"}
_FORM_BYTES = 64 * 2**10  # boundaries, headers and fields beside the file itself


@dataclass(frozen=True)
class Upload:
    """A file that has come."""

    file: BinaryIO
    filename: str
    lives_seconds: int | None


@asynccontextmanager
async def received(request: Request, max_bytes: int) -> AsyncIterator[Upload]:
    """Read the body of `POST /v1/files`; raises ApiError. The file is gone when the block ends."""
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise ApiError(INVALID, "send the file as multipart/form-data", "file")
    form = await _parsed(request, max_bytes + _FORM_BYTES)
    try:
        yield _checked(form, max_bytes)
    finally:
        await form.close()


async def _parsed(request: Request, max_bytes: int) -> FormData:
    body = _Counted(request, max_bytes)
    parser = MultiPartParser(request.headers, body.chunks(), max_files=1, max_fields=8)
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise ApiError(INVALID, f"the form cannot be read: {error.message}") from None
    except (KeyError, UnicodeDecodeError, LookupError):
        raise ApiError(INVALID, "the form cannot be read") from None
    except ClientDisconnect:
        raise ApiError(GONE, "the client has gone") from None


class _Counted:
    """The request's body, refused as soon as it is too large."""

    def __init__(self, request: Request, max_bytes: int) -> None:
        self._request = request
        self._most = max_bytes

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        length = self._request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._most:
            raise _too_large(self._most - _FORM_BYTES)
        size = 0
        async for chunk in self._request.stream():
            size += len(chunk)
            if size > self._most:
                raise _too_large(self._most - _FORM_BYTES)
            yield chunk


def _checked(form: FormData, max_bytes: int) -> Upload:
    if unknown := sorted(set(form) - _FIELDS):
        raise ApiError(UNKNOWN_FIELD, f"'{unknown[0][:100]}' is not known", unknown[0][:100])
    purpose, file = form.get("purpose"), form.get("file")
    if purpose is None or file is None:
        missing = "purpose" if purpose is None else "file"
        raise ApiError(MISSING_FIELD, f"missing: '{missing}'", missing)
    if purpose != PURPOSE:
        raise ApiError(INVALID, f"purpose: only '{PURPOSE}' is supported", "purpose")
    if not isinstance(file, UploadFile):
        raise ApiError(INVALID, "file: expected a file, found text", "file")
    size = file.size or 0
    if size > max_bytes:
        raise _too_large(max_bytes)
    if size == 0:
        raise ApiError(INVALID, "file: it is empty", "file")
    return Upload(file.file, _shown_name(file.filename), _lifetime(form))


def _shown_name(name: str | None) -> str:
    """Return a name for people: the last part of a path, without what cannot be printed."""
    last = PurePosixPath((name or "").replace("\\", "/")).name
    return "".join(letter for letter in last if letter.isprintable())[:255] or "upload"


def _lifetime(form: FormData) -> int | None:
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise ApiError(INVALID, "expires_after.anchor is created_at", "expires_after.anchor")
    text = str(seconds)
    if not (text.isascii() and text.isdecimal() and 3600 <= int(text[:9]) <= 2592000):
        message = "expires_after.seconds is a number from 3600 to 2592000"
        raise ApiError(INVALID, message, "expires_after.seconds")
    return int(text)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(FILE_TOO_LARGE, f"a file has at most {max_bytes:,} bytes", "file")
