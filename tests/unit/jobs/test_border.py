"""What is said when there is no cluster to ask: without Ray."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftray import jobs
from ftray.errors import ClusterError, ConfigError
from ftray.jobs import JobSpec


@pytest.fixture
def stranger() -> Iterator[str]:
    """An HTTP server that is no Ray dashboard."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_is_no_dashboard_is_told_so(stranger: str) -> None:
    with pytest.raises(ClusterError, match=r"what answers at .* is no Ray dashboard"):
        jobs.list_jobs(stranger)
    with pytest.raises(ClusterError, match="is no Ray dashboard"):
        jobs.submit(stranger, JobSpec("id", ("true",)))


def test_nobody_listening_is_told_with_the_address() -> None:
    with pytest.raises(ClusterError, match=r"no Ray dashboard at http://127\.0\.0\.1:9"):
        jobs.find("http://127.0.0.1:9", "id")


@pytest.mark.parametrize("address", ["", "auto", "10.0.0.1:6379", "ray://head:10001", "http://"])
def test_an_address_of_something_else_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="no address of Ray's dashboard"):
        jobs.list_jobs(address)


def test_a_token_file_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ClusterError, match=f"{tmp_path}/token: No such file"):
        jobs.list_jobs("http://127.0.0.1:9")


def test_a_folder_that_is_not_there_is_no_working_directory(tmp_path: Path, stranger: str) -> None:
    asked = JobSpec("id", ("true",), working_dir=tmp_path / "nowhere")
    with pytest.raises(ClusterError, match=r"job id: .*nowhere"):
        jobs.submit(stranger, asked)


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
