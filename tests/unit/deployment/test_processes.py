"""Which processes `ftray down` ends: those that `ftray up` started, and only those."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ftray.deployment import deployment, standing
from ftray.deployment.processes import MARK, end_all, ours
from ftray.deployment.standing import Process, Standing
from ftray.errors import ClusterError

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python programs in sessions of their own, and ends what the test leaves."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(program: str, output: Path | None = None, **env: str) -> subprocess.Popen[bytes]:
        with (output or Path(os.devnull)).open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-c", f"{program}\nimport time; time.sleep(60)"],
                env={**os.environ, **env},
                stdout=out,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def up(tmp_path: Path) -> Standing:
    session = tmp_path / "session"
    session.mkdir()
    return Standing(
        mark="this one",
        started=time.time(),
        session=str(session),
        address="127.0.0.1:1",
        jobs="http://127.0.0.1:1",
        token_file=str(tmp_path / "token"),
        url="http://127.0.0.1:1",
        model="m",
        storage=str(tmp_path),
        cpus=1,
    )


def test_processes_are_known_by_their_mark_or_by_where_they_log(up: Standing, start: Start) -> None:
    marked = start("", **{MARK: "this one"})
    logging = start("", output=Path(up.session, "worker.log"))  # as a worker with a title
    other = start("", **{MARK: "another"})
    bystander = start("")
    wait_for(lambda: len(ours(up)) == 2)
    assert {process.pid for process in ours(up)} == {marked.pid, logging.pid}

    assert end_all(up) == 0
    assert (marked.wait(5), logging.wait(5)) == (-signal.SIGTERM, -signal.SIGTERM)
    assert other.poll() is None
    assert bystander.poll() is None


def test_the_head_is_told_first_and_what_does_not_listen_is_killed(
    up: Standing, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftray.deployment.processes._ORDER_SECONDS", 0.5)
    monkeypatch.setattr("ftray.deployment.processes._GRACE_SECONDS", 0.5)
    head = start("", **{MARK: "this one"})
    deafness = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True)"
    log = Path(up.session, "deaf.log")
    deaf = start(deafness, output=log, **{MARK: "this one"})
    wait_for(lambda: log.exists() and log.stat().st_size > 0)
    assert end_all(with_head(up, head.pid)) == 1
    assert (head.wait(5), deaf.wait(5)) == (-signal.SIGTERM, -signal.SIGKILL)


def test_a_child_that_has_lost_its_mark_is_known_by_the_session_of_the_head(
    up: Standing, start: Start
) -> None:
    child = "import subprocess; subprocess.Popen(['sleep', '60'], env={}); print(flush=True)"
    head = start(child, **{MARK: "this one"})
    started = with_head(up, head.pid)
    wait_for(lambda: len(ours(started)) == 2)
    head.kill()  # as the system does with what takes too much memory
    wait_for(lambda: not started.head.is_alive)  # and nobody has asked how it ended
    assert [process.name() for process in ours(started)] == ["sleep"]
    head.wait(5)
    assert [process.name() for process in ours(started)] == ["sleep"]
    assert end_all(started) == 0
    assert ours(started) == []


def test_a_number_that_another_process_has_by_now_is_left_alone(up: Standing, start: Start) -> None:
    stranger = start("")
    old = Process(pid=stranger.pid, created=psutil.Process(stranger.pid).create_time() - 100)
    assert not old.is_alive
    assert end_all(Standing(**{**vars(up), "head": old})) == 0
    assert stranger.poll() is None


def test_down_cleans_up_after_an_up_that_was_killed_and_says_when_nothing_is_up(
    up: Standing, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTRAY_HOME", str(tmp_path / "home"))
    assert not deployment.down().was_up
    with pytest.raises(ClusterError, match="nothing is up on this machine"):
        standing.cluster_file()

    standing.write(up)  # what `up` records before it starts anything
    left = start("", **{MARK: "this one"})
    wait_for(lambda: len(ours(up)) == 1)
    assert deployment.down().was_up
    assert left.wait(5) == -signal.SIGTERM
    assert not Path(up.session).exists()
    assert standing.read() is None


def with_head(up: Standing, pid: int) -> Standing:
    head = Process(pid=pid, created=psutil.Process(pid).create_time())
    return Standing(**{**vars(up), "head": head})


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
