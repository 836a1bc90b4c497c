"""`ftray serve` as a process, and the processes below it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import openai
import psutil

_CLUSTER = "num_cpus: 4\nobject_store_memory: 100000000\n"
_START_SECONDS = 150.0


class Server:
    """The command with its own storage root; nothing that it started is left behind."""

    def __init__(self, folder: Path, settings: list[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cluster.yaml").write_text(_CLUSTER)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._out, self._log = folder / "stdout.txt", folder / "log.txt"
        command = [sys.executable, "-m", "ftray", "serve", f"http.port={self.port}", *settings]
        with self._out.open("wb") as out, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--cluster", str(folder / "cluster.yaml")],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # as a terminal's job: Ctrl-C reaches the whole group
            )
        self._seen: set[psutil.Process] = set()

    @property
    def said(self) -> str:
        """What the command has written to stdout."""
        return self._out.read_text()

    def wait_until_ready(self) -> "Server":
        """Return once the command says that it serves."""
        end = time.monotonic() + _START_SECONDS
        while "Ctrl-C stops" not in self.said:
            assert self._process.poll() is None, self.last_words()
            assert time.monotonic() < end, self.last_words()
            time.sleep(0.2)
        self.processes()
        return self

    def client(self, key: str = "not-needed") -> openai.OpenAI:
        """Return OpenAI's own client; it does not try again by itself."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def get(self, path: str, key: str = "") -> httpx2.Response:
        """Get a page."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx2.get(f"{self.url}{path}", headers=headers, timeout=30)

    def metric(self, name: str, key: str = "") -> float:
        """Return one number of /metrics, without labels."""
        found = re.search(rf"^{name} (\S+)$", self.get("/metrics", key).text, re.MULTILINE)
        assert found, name
        return float(found[1])

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Return the processes of a deployment, Engine or Api; or of `Proxy`."""
        word = "ProxyActor" if deployment == "Proxy" else f"ServeReplica:ftray:{deployment}"
        return [process for process in self.processes() if word in _title(process)]

    def interrupt(self, seconds: float = 30.0) -> int:
        """Press Ctrl-C; return the exit code."""
        self.processes()
        os.killpg(self._process.pid, signal.SIGINT)
        return self._process.wait(seconds)

    def left_over(self) -> list[str]:
        """Kill what has outlived the command by some seconds; return the titles of that."""
        if self._process.poll() is None:
            self.processes()
            self._process.kill()
            self._process.wait()
        left = psutil.wait_procs(self._seen, timeout=5)[1]
        titles = [_title(process)[:60] for process in left]
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        return titles

    def last_words(self) -> str:
        """Return the end of what the command has logged."""
        return self._log.read_text(errors="replace")[-4000:]

    def processes(self) -> list[psutil.Process]:
        """Return what is below the command now, and remember it; psutil knows a pid given anew."""
        below = psutil.Process(self._process.pid).children(recursive=True)
        self._seen.update(below)
        return below


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""
