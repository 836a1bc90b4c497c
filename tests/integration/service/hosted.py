"""The service as a process with a cluster below it, and the processes of that."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openai
import psutil
from head import ray_folder

HOST = Path(__file__).with_name("host.py")
_START_SECONDS = 240.0


class Hosted:
    """A service that ends, with all that belongs to it, when it is closed."""

    def __init__(self, folder: Path, app: dict[str, Any], port: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "config.json"
        self._ray = ray_folder()
        config.write_text(json.dumps({"port": port, "app": app, "ray": self.ray}))
        self._log = folder / "log.txt"
        self._out = folder / "out.txt"
        with self._out.open("wb") as out, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(HOST), str(config)],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        self.url = f"http://127.0.0.1:{port}"

    @property
    def ray(self) -> str:
        """The folder of its Ray."""
        return self._ray.name

    def wait_until_ready(self) -> "Hosted":
        end = time.monotonic() + _START_SECONDS
        while self.url not in self._out.read_text():
            assert self._process.poll() is None, self.last_words()
            assert time.monotonic() < end, self.last_words()
            time.sleep(0.2)
        return self

    def client(self, key: str = "any", retries: int = 0) -> openai.OpenAI:
        url = f"{self.url}/v1"
        return openai.OpenAI(base_url=url, api_key=key, max_retries=retries, timeout=60)

    def find(self, word: str) -> list[psutil.Process]:
        """Return the processes whose title has a word, such as `Api`, `Controller`, `driver`."""
        return [one for one in self.processes() if word in _title(one)]

    def kill(self, word: str) -> None:
        """Kill -9 one of them, as soon as there is one."""
        end = time.monotonic() + 60
        while not (found := self.find(word)):
            assert time.monotonic() < end, f"no process {word}"
            time.sleep(0.1)
        found[0].kill()

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self._process.pid).children(recursive=True)

    def last_words(self) -> str:
        return self._log.read_text(errors="replace")[-4000:]

    def close(self) -> None:
        below = self.processes() if self._process.poll() is None else []
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(40)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in psutil.wait_procs(below, timeout=10)[1]:
            process.kill()
        self._ray.cleanup()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""
