"""Checkpoints on S3, against a real S3 server that goes away, comes back, and is too busy."""

import http.server
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Protocol

import fsspec
import pytest
import torch
from moto.server import ThreadedMotoServer
from torch import nn

from ftray import runs, storage
from ftray.errors import StorageError
from ftray.runs import Run
from ftray.train import checkpoint
from ftray.train.checkpoint import Progress
from ftray.train.parallel import Place
from ftray.train.saver import Saver

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

PLACE = Place(0, 1, torch.device("cpu"))
HOST = "127.0.0.1"


class Server(Protocol):
    def start(self) -> None: ...
    def stop(self) -> None: ...


class Busy(http.server.BaseHTTPRequestHandler):
    """Answers as S3 does to one who asks for too much."""

    def do_GET(self) -> None:
        body = b"<Error><Code>SlowDown</Code><Message>Please reduce your rate.</Message></Error>"
        self.send_response(503)
        self.send_header("Content-Length", str(0 if self.command == "HEAD" else len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        """Keep the test's output free of requests."""


class BusyServer:
    def __init__(self, port: int) -> None:
        self._server = http.server.ThreadingHTTPServer((HOST, port), Busy)

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Store:
    """An S3 server at one address; what it holds outlives it."""

    def __init__(self) -> None:
        self._server: Server = ThreadedMotoServer(ip_address=HOST, port=0, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def goes(self) -> None:
        self._server.stop()

    def comes_back(self, *, busy: bool = False) -> None:
        new = ThreadedMotoServer(ip_address=HOST, port=self.port, verbose=False)
        self._server = BusyServer(self.port) if busy else new
        self._server.start()


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    store = Store()
    filesystem = fsspec.get_filesystem_class("s3")
    filesystem.clear_instance_cache()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{HOST}:{store.port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "tester")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")  # what the client tries by itself takes its time
        fsspec.filesystem("s3", use_listings_cache=False).mkdir("s3://checkpoints")
        yield store
    filesystem.clear_instance_cache()
    store.goes()


@pytest.fixture
def run(store: Store) -> Run:
    return Run("s3://checkpoints/root", uuid.uuid4().hex)


class Learner:
    """A layer that learns, one random step after the other."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layer = nn.Linear(400, 400)
        self.trainable = dict(layer.named_parameters())
        self.optimizer = torch.optim.AdamW(self.trainable.values(), lr=0.01)

    def step(self, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        for parameter in self.trainable.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        self.optimizer.step()

    def learn(self, saver: Saver, steps: range) -> None:
        """Take steps, begin a save after each, and take none before the last one is there."""
        for step in steps:
            self.step(step)
            self.save(saver, step + 1)
            saver.wait()

    def save(self, saver: Saver, step: int) -> None:
        progress = Progress(step, {}, is_best=False, micro_batch_size=1)
        saver.save(self.trainable, self.optimizer, progress)


def test_a_run_goes_on_from_s3_as_if_it_had_never_stopped(run: Run) -> None:
    learner, saver = Learner(), Saver(run, PLACE, attempt=1, keep=2)
    learner.learn(saver, range(4))
    saver.close()
    assert [record.step for record in runs.checkpoints(run)] == [4, 3]
    folders = storage.names(storage.join(run.folder, "checkpoints"))
    assert folders == ["step-000003-a1", "step-000004-a1"]
    again, record = Learner(), checkpoint.newest(run, PLACE, 2)
    assert record is not None
    checkpoint.load(run, record, again.trainable, again.optimizer)
    for made in (learner, again):
        made.step(4)
    for name, values in learner.trainable.items():
        assert torch.equal(values, again.trainable[name])


def test_a_damaged_checkpoint_on_s3_is_left_for_the_one_before(run: Run) -> None:
    learner, saver = Learner(), Saver(run, PLACE, attempt=1, keep=2)
    learner.learn(saver, range(2))
    saver.close()
    path = storage.join(runs.checkpoint_folder(run, 2, 1), "__0_0.distcp")
    storage.write(path, storage.read(path)[:-1000])
    record = checkpoint.newest(run, PLACE, 2)
    assert record is not None
    assert record.step == 1
    assert [record.step for record in runs.checkpoints(run)] == [1]


@pytest.mark.parametrize("busy", [False, True], ids=["away", "busy"])
def test_a_save_outlasts_a_server_that_is(
    busy: bool, store: Store, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    learner, saver = Learner(), Saver(run, PLACE, attempt=1, keep=2, patience=30.0)
    learner.learn(saver, range(1))
    store.goes()
    if busy:
        store.comes_back(busy=True)
    learner.step(1)
    learner.save(saver, 2)
    learner.step(2)  # training does not wait
    await_words("trying again in", caplog)
    if busy:
        store.goes()
    store.comes_back()
    assert saver.wait() is not None
    saver.close()
    record = checkpoint.newest(run, PLACE, 2)
    assert record is not None
    assert record.step == 2


def await_words(words: str, caplog: pytest.LogCaptureFixture) -> None:
    end = time.monotonic() + 20
    while words not in caplog.text and time.monotonic() < end:
        time.sleep(0.05)
    assert words in caplog.text


def test_an_outage_that_lasts_is_told_and_the_next_attempt_goes_on_from_the_save_before(
    store: Store, run: Run
) -> None:
    learner, saver = Learner(), Saver(run, PLACE, attempt=1, keep=2, patience=0.5)
    learner.learn(saver, range(1))
    folder = runs.checkpoint_folder(run, 2, 1)
    storage.write(storage.join(folder, "__0_0.distcp"), b"half of it")
    store.goes()
    learner.step(1)
    learner.save(saver, 2)
    with pytest.raises(StorageError, match=r"step 2 could not be saved: .*connect") as caught:
        saver.wait()
    assert "run the same command again" in caught.value.hint
    saver.close()
    store.comes_back()
    record = checkpoint.newest(run, PLACE, 2)
    assert record is not None
    assert record.step == 1
    assert not storage.exists(folder)
