"""The command as its user meets it: a conversation, a port in use, a replica that is killed."""

import subprocess
import sys
import time

import pytest
from load import Load

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
