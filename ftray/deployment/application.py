"""The Serve application that `ftray up` deploys: over Serve's own REST API, so that it stays."""

import time
import urllib.error
import urllib.request
from typing import Any

from ftray.config.base import Tree
from ftray.config.serve import HttpConfig
from ftray.deployment.standing import Standing
from ftray.errors import ServeError
from ftray.jobs.border import Border, RefusedError
from ftray.jobs.client import Client

_DRAIN_SECONDS = 60.0
_READY_SECONDS = 300.0  # a base model may have to be unpacked or fetched


def deploy(standing: Standing, config: Tree) -> None:
    """Give Serve its config; it does the rest by itself."""
    with Border(standing.jobs):
        answer = Client(standing.jobs)._do_request(
            "PUT", "/api/serve/applications/", json_data=config
        )
        if answer.status_code != 200:
            raise RefusedError(answer.status_code, answer.text)


def withdraw(standing: Standing) -> None:
    """Let running answers end, and take the application away."""
    with Border(standing.jobs):
        Client(standing.jobs)._do_request("DELETE", "/api/serve/applications/")
    end = time.monotonic() + _DRAIN_SECONDS
    while _applications(standing) and time.monotonic() < end:
        time.sleep(0.2)


def wait_until_ready(standing: Standing) -> None:
    """Return when the server answers; raise ServeError with Serve's reason if it will not."""
    end = time.monotonic() + _READY_SECONDS
    while not is_ready(standing):
        for name, application in _applications(standing).items():
            if application["status"] == "DEPLOY_FAILED":
                raise ServeError(f"{name} did not start: {_reason(application['message'])}")
        if standing.head is None or not standing.head.is_alive:
            raise ServeError("Ray has ended while the application was starting")
        if time.monotonic() > end:
            raise ServeError(f"{standing.url}/readyz is not ready after {_READY_SECONDS:g} s")
        time.sleep(0.5)


def is_ready(standing: Standing) -> bool:
    """Whether the server answers, now."""
    try:
        with urllib.request.urlopen(f"{standing.url}/readyz", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def url_of(http: HttpConfig) -> str:
    """Return where this machine reaches the server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(http.host, http.host)
    return f"http://{host}:{http.port}"


def _applications(standing: Standing) -> dict[str, Any]:
    with Border(standing.jobs):
        answer = Client(standing.jobs)._do_request("GET", "/api/serve/applications/")
        found: dict[str, Any] = answer.json().get("applications", {})
    return found


def _reason(message: str) -> str:
    """The line of a traceback in which the error is, else the first one."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.partition(":")[0]]
    return (errors or lines or ["it did not say why"])[-1 if errors else 0]
