"""Operations on the storage root are tried again where that can help and somebody will wait."""

import errno
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import ClientPayloadError, ServerDisconnectedError
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from s3fs.errors import translate_boto_error

from ftray import storage
from ftray.errors import StorageError
from ftray.storage.border import may_pass
from ftray.storage.patience import patient, tried


def answered(status: int, code: str) -> BaseException:
    """An S3 server's answer, as s3fs raises it."""
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error: BaseException = translate_boto_error(ClientError(response, "PutObject"))
    return error


class Flaky:
    """Fails as often as it is told, then succeeds."""

    def __init__(self, failures: int, error: BaseException) -> None:
        self.failures = failures
        self.error = error
        self.tries = 0

    def __call__(self) -> int:
        self.tries += 1
        if self.tries <= self.failures:
            raise self.error
        return self.tries


PASSING = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.ESTALE, "Stale file handle"),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    TimeoutError(),
    ServerDisconnectedError(),
    ClientPayloadError(),
    EndpointConnectionError(endpoint_url="http://127.0.0.1:1"),
    answered(503, "SlowDown"),
    answered(500, "InternalError"),
    answered(502, "BadGateway"),
]
LASTING = [
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
    PermissionError(errno.EACCES, "Permission denied"),
    OSError(errno.EROFS, "Read-only file system"),
    NoCredentialsError(),
    answered(403, "AccessDenied"),
    answered(404, "NoSuchBucket"),
    answered(400, "SomethingNew"),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_may_be_over_soon_is_worth_another_try(error: BaseException) -> None:
    assert may_pass(error)


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_what_somebody_has_to_change_is_not_tried_again(error: BaseException) -> None:
    assert not may_pass(error)
    operation = Flaky(1, error)
    with patient(60.0), pytest.raises(StorageError):
        tried("cannot read", "x", operation)
    assert operation.tries == 1


def test_an_operation_is_tried_until_it_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    with patient(10.0):
        assert tried("cannot write", "root/x", Flaky(2, PASSING[0])) == 3
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("cannot write root/x: No space left on device; trying again in 0.")
    assert second.startswith("cannot write root/x: No space left on device; trying again in ")


def test_patience_ends_with_the_error_itself() -> None:
    operation, began = Flaky(1000, PASSING[0]), time.monotonic()
    with patient(1.0), pytest.raises(StorageError, match="No space left") as caught:
        tried("cannot write", "root/x", operation)
    assert time.monotonic() - began <= 1.1
    assert 2 <= operation.tries <= 4
    assert "free some space" in caught.value.hint


def test_without_patience_an_error_is_told_at_once() -> None:
    for operation in (Flaky(1, PASSING[0]), Flaky(1, PASSING[-1])):
        with pytest.raises(StorageError):
            tried("cannot write", "root/x", operation)
        assert operation.tries == 1


def test_patience_is_that_of_a_thread_within_a_block() -> None:
    elsewhere = Flaky(1, PASSING[0])

    def work() -> None:
        with pytest.raises(StorageError):
            tried("cannot write", "root/x", elsewhere)

    with patient(60.0):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    with pytest.raises(StorageError):
        tried("cannot write", "root/x", Flaky(1, PASSING[0]))
    assert elsewhere.tries == 1


def once_broken(operation: Callable[..., None]) -> Callable[..., None]:
    """Do what was asked for, but lose the first answer."""
    answers = iter([OSError(errno.EIO, "Input/output error")])

    def broken(*given: object) -> None:
        operation(*given)
        for error in answers:
            raise error

    return broken


def test_who_creates_a_file_has_created_it_though_the_answer_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "claim")
    monkeypatch.setattr(os, "link", once_broken(os.link))
    with patient(10.0):
        assert storage.create(path, b"mine")
    assert storage.read(path) == b"mine"
    with patient(10.0):
        assert not storage.create(path, b"mine")  # nothing was lost: it was there


def test_behind_a_uri_a_lost_answer_is_told_by_the_content() -> None:
    """There the client library itself tries again, and nobody hears of it."""
    path = f"memory://{uuid.uuid4().hex}/claim"
    assert storage.create(path, b"mine")
    assert storage.create(path, b"mine")
    assert not storage.create(path, b"theirs")
