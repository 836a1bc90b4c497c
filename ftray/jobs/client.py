"""Ray's own client of the Jobs API, with an end to its patience."""

import logging
import os
import re
from pathlib import Path
from typing import Any, NoReturn

import requests
from ray.dashboard.modules.dashboard_sdk import SubmissionClient
from ray.job_submission import JobSubmissionClient

from ftray.errors import ClusterError, ConfigError
from ftray.jobs.border import RefusedError

_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_SECONDS = 60.0  # for an answer; a working directory of some megabytes is sent in less


class Client(JobSubmissionClient):
    """A client of exactly this address.

    Ray's own goes where RAY_ADDRESS points, whatever it is told, and waits for ever for an answer.
    """

    def __init__(self, address: str) -> None:
        if not re.fullmatch(r"https?://[^\s/]+/?", address):
            raise ConfigError(
                f"'{address}' is no address of Ray's dashboard", "as in http://127.0.0.1:8265"
            )
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        # past JobSubmissionClient's own, which looks at RAY_ADDRESS and asks three questions
        SubmissionClient.__init__(self, address, headers=_headers())

    def _do_request(  # type: ignore[override]  # Ray's takes any keyword
        self,
        method: str,
        endpoint: str,
        *,
        data: bytes | None = None,
        json_data: dict[str, Any] | None = None,
        timeout: float = _SECONDS,
    ) -> requests.Response:
        return super()._do_request(
            method, endpoint, data=data, json_data=json_data, timeout=timeout
        )

    def _raise_error(self, r: requests.Response) -> NoReturn:
        raise RefusedError(r.status_code, r.text)

    def _check_connection_and_version(
        self, min_version: str = "", version_error_message: str | None = None
    ) -> None:
        """Ask nothing: `ray_version` compares more than this."""


def _headers() -> dict[str, str]:
    """Ray reads its token once a process; a process may speak to several clusters."""
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or ("~/.ray/auth_token" if mode == "token" else "")
    if not token and path:
        try:
            token = Path(path).expanduser().read_text(encoding="utf-8")
        except OSError as error:
            raise ClusterError(
                f"cannot read the cluster's token in {path}: {error.strerror}",
                "set RAY_AUTH_TOKEN_PATH, or token_file in the cluster file",
            ) from None
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else {}
