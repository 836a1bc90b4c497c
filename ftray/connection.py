"""The connection to Ray: to the cluster that a file names, or to one of this machine's own."""

import logging
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import psutil
import ray
from ray._raylet import (  # type: ignore[attr-defined]  # compiled, without types
    AuthenticationTokenLoader,
    Config,
)
from ray.exceptions import AuthenticationError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ftray import credentials
from ftray.config.cluster import ClusterConfig
from ftray.errors import ClusterError, first_line
from ftray.versions import Versions, versions

_OBJECT_STORE_BYTES = 2 * 2**30
_ANSWER_SECONDS = 30.0  # for a machine to start a process and import ftray


@dataclass(frozen=True)
class Connection:
    """A cluster that is being joined."""

    _joining: Future[None]

    def wait(self) -> None:
        """Return when Ray can be used; raises ClusterError if it can't."""
        self._joining.result()
        _when_killed(signal.default_int_handler)  # Ray's prints a native stack, and aborts


@contextmanager
def connecting(config: ClusterConfig | None) -> Iterator[Connection]:
    """Join the cluster that the file names, or start one on this machine, for the block's time.

    It is joined beside what the block does first: to start Ray takes as long as to import torch.
    In the block SIGTERM, which `kill` and schedulers send, does what Ctrl-C does. A process that is
    already connected, as a test run or a notebook, keeps its connection.
    """
    if ray.is_initialized():
        there: Future[None] = Future()
        there.set_result(None)
        yield Connection(there)
        return
    before = signal.getsignal(signal.SIGTERM)
    _when_killed(signal.default_int_handler)
    with ThreadPoolExecutor(1, "ray") as thread:  # Ray's processes die with the thread they are of
        joining = thread.submit(_connect, config or ClusterConfig())
        try:
            yield Connection(joining)
        finally:
            wait([joining])
            ray.shutdown()
            _when_killed(before)


@contextmanager
def connected(config: ClusterConfig | None) -> Iterator[None]:
    """Join a cluster for the block's time as `connecting` does, and wait until it is there."""
    with connecting(config) as connection:
        connection.wait()
        yield


def _when_killed(handler: Callable[[int, FrameType | None], Any] | int | None) -> None:
    if threading.current_thread() is threading.main_thread():  # no other may set handlers
        signal.signal(signal.SIGTERM, handler)


def _connect(config: ClusterConfig) -> None:
    if config.token_file is not None:
        credentials.use_token(config.token_file)
        Config.initialize("")  # Ray has read the environment when it was imported
        AuthenticationTokenLoader.instance().reset_cache()
    elif config.address == "local" and not credentials.is_given():
        credentials.use_own_token()
    try:
        if config.address == "local":
            _start(config)
        else:
            ray.init(config.address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, AuthenticationError) as error:
        raise ClusterError(
            f"cannot connect to the Ray cluster at '{config.address}': {error}",
            "check the address in the cluster file, and that the cluster is up (ray status)",
        ) from None
    if config.address != "local":
        _check_versions()


def _start(config: ClusterConfig) -> None:
    ray.init(
        "local",
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
        object_store_memory=config.object_store_memory or object_store_bytes(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address=own_address(),
    )


def _check_versions() -> None:
    """Raise ClusterError if a machine of the cluster has another ftray, or none.

    Ray itself compares Ray and Python with the head's when it connects.
    """
    asked = ray.remote(num_cpus=0)(versions)
    alive = [node for node in ray.nodes() if node["Alive"]]
    answers = {
        node["NodeManagerAddress"]: asked.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in alive
    }
    mine = versions()
    for name, answer in answers.items():
        try:
            theirs: Versions = ray.get(answer, timeout=_ANSWER_SECONDS)
        except RayTaskError as error:
            ray.shutdown()
            raise ClusterError(
                f"{name} cannot run ftray: {first_line(error.cause or error)}",
                f"install ftray {mine.ftray} on every machine of the cluster",
            ) from None
        except RayError:
            continue  # a machine that has just died: Ray takes it for alive for a while
        if theirs != mine:
            ray.shutdown()
            raise ClusterError(
                f"{name} runs {theirs}; here it is {mine}", "install the same on all machines"
            )


def own_address() -> str | None:
    """Return a loopback address that no other Ray of this machine has, if the machine gives one.

    Every Ray wants port 52365 of its address for an agent (2.60): on an address that it shares with
    another, or with one that was just killed, it waits 3 s for it in vain.
    """
    address = f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return None  # macOS has 127.0.0.1 alone
    return address


def object_store_bytes() -> int:
    """Return how much memory Ray gets for data blocks unless a cluster file says: not its 30%."""
    return min(_OBJECT_STORE_BYTES, int(psutil.virtual_memory().total * 0.1))
