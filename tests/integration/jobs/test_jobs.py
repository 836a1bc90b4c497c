"""Jobs over Ray's Jobs API, on a real cluster with token authentication."""

import threading
import time
from pathlib import Path

import pytest

from ftray import jobs
from ftray.errors import ClusterError, ConfigError
from ftray.jobs import JobSpec
from tests.integration.jobs.conftest import Head, free_port, until_over

pytestmark = pytest.mark.full


def spec(id: str, script: str, **more: object) -> JobSpec:
    return JobSpec(id, ("sh", "-c", script), **more)  # type: ignore[arg-type]


def test_a_job_has_its_folder_and_the_named_variables_and_tells_how_it_ended(
    admitted: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOT_NAMED", "is not sent")
    (tmp_path / "note.txt").write_text("packed and sent\n")
    script = 'cat note.txt; echo "$NAMED|$NOT_NAMED|"; sleep 1; echo last; exit 3'
    asked = spec("ends", script, working_dir=tmp_path, env={"NAMED": "a 'b"}, metadata={"run": "r"})

    assert jobs.submit(admitted.address, asked) == "ends"
    written = "".join(jobs.logs(admitted.address, "ends", follow=True))

    lines = [line for line in written.splitlines() if "INFO" not in line]  # Ray's own
    assert [line for line in lines if "entrypoint" not in line] == [
        "packed and sent",
        "a 'b||",
        "last",
    ]
    found = until_over(admitted.address, "ends")
    assert (found.state, found.exit_code, found.metadata) == ("failed", 3, {"run": "r"})
    assert "last" in found.message
    assert found.started
    assert found.ended
    assert found.started < found.ended
    assert "".join(jobs.logs(admitted.address, "ends")) == written


def test_many_who_submit_one_id_at_once_get_one_job(admitted: Head, tmp_path: Path) -> None:
    asked = spec("once", f"echo started >> {tmp_path}/starts")
    ids: list[str] = []
    threads = [
        threading.Thread(target=lambda: ids.append(jobs.submit(admitted.address, asked)))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    until_over(admitted.address, "once")
    assert jobs.submit(admitted.address, asked) == "once"  # and after its end
    assert ids == ["once"] * 5
    assert (tmp_path / "starts").read_text() == "started\n"
    assert [job.id for job in jobs.list_jobs(admitted.address)].count("once") == 1


def test_a_job_that_is_stopped_is_told_so_and_may_end_in_peace(
    admitted: Head, tmp_path: Path
) -> None:
    script = (
        f"trap 'sleep 4; touch {tmp_path}/saved; exit 0' TERM; touch {tmp_path}/up; sleep 99 & wait"
    )
    jobs.submit(admitted.address, spec("told", script, env={"RAY_JOB_STOP_WAIT_TIME_S": "30"}))
    while not (tmp_path / "up").exists():
        time.sleep(0.1)

    assert jobs.stop(admitted.address, "told")
    assert until_over(admitted.address, "told").state == "stopped"
    assert (tmp_path / "saved").exists()  # later than Ray's own 3 s
    assert not jobs.stop(admitted.address, "told")


def test_a_job_that_finds_no_room_says_that_it_waits(admitted: Head) -> None:
    jobs.submit(admitted.address, spec("large", "true", cpus=64))
    time.sleep(1.5)
    found = jobs.find(admitted.address, "large")
    assert found is not None
    assert found.state == "pending"
    assert "waiting for resources" in found.message
    assert not found.is_over


def test_what_is_not_there_is_said(admitted: Head) -> None:
    assert jobs.find(admitted.address, "nobody") is None
    for ask in (lambda: jobs.stop(admitted.address, "nobody"), lambda: _read("nobody", admitted)):
        with pytest.raises(ClusterError, match="has no job 'nobody'"):
            ask()
    nowhere = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ClusterError, match=f"there is no Ray dashboard at {nowhere}"):
        jobs.list_jobs(nowhere)
    with pytest.raises(ConfigError, match="no address of Ray's dashboard"):
        jobs.list_jobs("10.0.0.1:6379")


def test_an_address_that_is_given_is_used_whatever_the_environment_says(
    admitted: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{free_port()}")
    assert jobs.find(admitted.address, "nobody") is None


@pytest.mark.parametrize(
    ("token", "said"),
    [("", "wants a token"), ("wrong" * 8, "does not know this token")],
    ids=["no token", "a wrong token"],
)
def test_without_the_right_token_nothing_is_shown_or_started(
    head: Head, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str, said: str
) -> None:
    (tmp_path / "token").write_text(token)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    for ask in (
        lambda: jobs.list_jobs(head.address),
        lambda: jobs.submit(head.address, spec("uninvited", "true")),
        lambda: _read("once", head),
    ):
        with pytest.raises(ClusterError, match=said) as caught:
            ask()
        assert token not in str(caught.value) or not token
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "no-such-file"))
    with pytest.raises(ClusterError, match="cannot read the cluster's token"):
        jobs.list_jobs(head.address)


def _read(id: str, head: Head) -> str:
    return "".join(jobs.logs(head.address, id, follow=True))
