"""The command as its user meets it: a conversation, a port in use, a replica that is killed."""

import subprocess
import sys
import threading
import time

import httpx2
import openai
import pytest

READY_SECONDS = 30.0


def run(*words):
    command = [sys.executable, "-m", "ftray", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_ftray_chat_answers_one_message(served, monkeypatch):
    prompt = next(iter(served.zoo.expected))[1]
    options = ("--url", served.server.url, "--temperature", "0", "--max-tokens", "24")
    refused = run("chat", "ant", prompt, *options)
    assert refused.returncode == 7
    assert "FTRAY_API_KEY" in refused.stderr
    monkeypatch.setenv("FTRAY_API_KEY", served.key)
    answered = run("chat", "ant", prompt, *options)
    assert answered.returncode == 0, answered.stderr
    expected = b"".join(served.zoo.expected["ant", prompt]).decode(errors="replace")
    assert answered.stdout == expected + "\n"


def test_a_port_in_use_is_told_as_one_error(served):
    settings = (f"http.port={served.server.port}", f"storage={served.zoo.root}")
    done = run("serve", *settings, f"model.name={served.model('base')}")
    assert done.returncode == 7
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert f"127.0.0.1:{served.server.port}" in errors[0]
    assert "Traceback" not in done.stderr


class Load:
    """Clients that ask again and again, and what became of each request."""

    def __init__(self, served, clients):
        self.outcomes = []  # (when it ended, what it was)
        self._served, self._is_over = served, threading.Event()
        names = [name for name, prompt in served.zoo.expected if prompt == self.prompt()]
        self._threads = [
            threading.Thread(target=self._ask, args=(names[number % 8],))
            for number in range(clients)
        ]

    def prompt(self):
        return next(iter(self._served.zoo.expected))[1]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._is_over.set()
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive()

    def _ask(self, name):
        expected = self._served.zoo.expected[name, self.prompt()]
        while not self._is_over.is_set():
            try:
                found = self._served.answer(name, stream=True)
                outcome = "right" if found == expected else f"wrong: {found}"
            except openai.APIStatusError as error:
                after = error.response.headers.get("retry-after")
                outcome = f"{error.status_code} {error.code}{' again' if after else ''}"
                time.sleep(0.5)
            except openai.APIError as error:  # in a stream
                outcome = f"stream {error.code}"
            except httpx2.HTTPError as error:
                outcome = f"cut: {error!r}"
            self.outcomes.append((time.monotonic(), outcome))


@pytest.mark.full
def test_a_replica_killed_under_load_costs_clean_errors_and_half_a_minute(served):
    [engine] = served.server.replicas("Engine")
    with Load(served, clients=6) as load:
        while len(load.outcomes) < 12:
            time.sleep(0.1)
        engine.kill()
        killed = time.monotonic()
        time.sleep(1)
        while served.server.get("/readyz").status_code != 200:
            assert time.monotonic() - killed < READY_SECONDS
            time.sleep(0.2)
        ready = time.monotonic()
        time.sleep(3)
    clean = {"right", "503 unavailable again", "stream unavailable"}
    assert {outcome for _, outcome in load.outcomes} <= clean
    assert {outcome for at, outcome in load.outcomes if at > ready + 2} == {"right"}
    [other] = served.server.replicas("Engine")
    assert other.pid != engine.pid
