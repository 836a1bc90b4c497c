"""`ftray serve`: the application on this machine or cluster, until Ctrl-C."""

import logging
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from ftray import registry, storage
from ftray.config.cluster import ClusterConfig
from ftray.config.serve import HttpConfig, ServeConfig
from ftray.connection import connected
from ftray.errors import ServeError, first_line
from ftray.model.folder import fetch, fingerprint
from ftray.ports import free_port
from ftray.serve.app import APPLICATION, build

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    url: str
    model: str
    example: str  # a model to call: an adapter if there is one
    key: str  # what a client has to send


@contextmanager
def serving(
    config: ServeConfig, endpoint: HttpConfig, on: ClusterConfig | None = None
) -> Iterator[Running]:
    """Serve for the block's time; running answers may end before it is left."""
    port = free_port(endpoint.host, endpoint.port, "http.port=8001")  # Serve would only log it
    with connected(on):
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            serve.start(
                http_options=HTTPOptions(host=endpoint.host, port=port),
                logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
            )
            serve.run(build(config), name=APPLICATION, route_prefix="/")
        except (RayServeException, RuntimeError) as error:
            serve.shutdown()
            raise ServeError(f"the server did not start: {first_line(error)}") from error
        url = f"http://{endpoint.host}:{port}"
        try:
            _wait_until_ready(url)
            yield Running(url, config.model.name, _example(config), _key(config))
        finally:
            logger.info("waiting for running answers, then stopping")
            serve.shutdown()


def _example(config: ServeConfig) -> str:
    folder = fetch(config.model, root := storage.storage_root(config.storage))
    own = fingerprint(folder)
    served = [
        record
        for record in registry.list_adapters(root)
        if record.kind == "adapter" and record.base.fingerprint == own
    ]
    return max(served, key=lambda record: record.created).name if served else config.model.name


def _key(config: ServeConfig) -> str:
    return "not-needed" if config.access == "open_until_first_key" else "your key"


def _wait_until_ready(url: str) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise ServeError(f"{url}/readyz did not become ready within {_START_SECONDS:g} s")


_START_SECONDS = 120.0
