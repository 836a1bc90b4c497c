"""`ftray submit` to a cluster that shares no disk with us: storage on S3, data uploaded."""

import json
import time
from pathlib import Path

import pytest

from ftray import commands, jobs, registry, runs, storage
from ftray.errors import ClusterError, ConfigError
from ftray.jobs import JobSpec
from ftray.submit.asked import How
from tests.integration.jobs.conftest import Head, until_over

pytestmark = pytest.mark.full

ROWS = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]}
    for n in range(8)
]


@pytest.fixture
def run_file(tmp_path: Path, small_model: Path, bucket: str) -> str:
    """A run of one step, on data of this machine."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "run.yaml").write_text(f"""
name: sent
model: {{name: {small_model}}}
adapter: {{rank: 4}}
data: {{train: rows.jsonl, max_length: 64}}
train: {{max_steps: 1, global_batch_size: 1}}
storage: {bucket}
""")
    return str(tmp_path / "run.yaml")


def test_a_run_is_trained_where_nothing_of_this_machine_is_seen(
    admitted: Head, cluster_file: str, run_file: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAMED", "sent along")
    how = How(key="monday", env=("NAMED",))
    found = commands.submit(run_file, cluster=cluster_file, how=how)
    again = commands.submit(run_file, cluster=cluster_file, how=how)
    assert again.job.id == found.job.id

    log = "".join(commands.job_logs(found.job.id, cluster=cluster_file, follow=True))
    job = until_over(admitted.address, found.job.id)
    assert (job.state, job.exit_code) == ("succeeded", 0), log
    assert "published" in log or "sent@1" in log
    assert registry.resolve(bucket, "sent").version == 1
    config = runs.read_config(runs.Run(bucket, "sent"))
    [source] = config.data.train
    assert source.path.startswith(f"{bucket}/uploads/")
    assert storage.read(source.path) == Path(run_file).with_name("rows.jsonl").read_bytes()
    assert [one.id for one in jobs.list_jobs(admitted.address)].count(job.id) == 1
    with pytest.raises(ConfigError, match="the key was used before"):
        commands.submit(run_file, ["train.seed=1"], cluster=cluster_file, how=how)


def test_what_the_cluster_cannot_hold_is_refused_with_the_reason(
    admitted: Head, cluster_file: str, run_file: str
) -> None:
    with pytest.raises(ClusterError, match="1 workers × 4 GPUs need 4 GPUs; the cluster has 0"):
        commands.submit(run_file, ["scaling.gpus_per_worker=4"], cluster=cluster_file)

    held = JobSpec("holder", ("sleep", "60"), cpus=2, metadata={"run": "other"})
    jobs.submit(admitted.address, held)
    try:
        while jobs.find(admitted.address, "holder").state != "running":
            time.sleep(0.2)
        words = r"the cluster has 1 free of 3, 2 used by run other \(job holder\)"
        with pytest.raises(ClusterError, match=words) as caught:
            commands.submit(run_file, ["scaling.cpus_per_worker=2"], cluster=cluster_file)
        assert "--wait" in caught.value.hint
    finally:
        jobs.stop(admitted.address, "holder")
        until_over(admitted.address, "holder")
        while len(jobs.holdings(admitted.address)) > 0:  # its place is free a moment later
            time.sleep(0.2)
    assert jobs.find(admitted.address, "sent") is None


def test_another_version_on_the_cluster_is_told_with_both(
    admitted: Head, cluster_file: str, run_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftray.versions.__version__", "9.9.9")  # of this machine
    with pytest.raises(ClusterError, match=r"runs ftray 0\.1\.0.*submitted by ftray 9\.9\.9"):
        commands.submit(run_file, cluster=cluster_file)
    monkeypatch.setattr("ftray.versions.metadata.version", lambda _: "2.1.0")
    with pytest.raises(ClusterError, match=r"runs Ray [\d.]+, this is Ray 2\.1\.0"):
        commands.submit(run_file, cluster=cluster_file)


def test_what_would_not_arrive_is_refused_before_anything_is_sent(
    admitted: Head, cluster_file: str, run_file: str, tmp_path: Path
) -> None:
    before = len(jobs.list_jobs(admitted.address))
    with pytest.raises(ConfigError, match="is a folder of this machine"):
        commands.submit(run_file, [f"storage={tmp_path}/root"], cluster=cluster_file)
    with pytest.raises(ConfigError, match="NOBODY: there is no such variable"):
        commands.submit(run_file, cluster=cluster_file, how=How(env=("NOBODY",)))
    (tmp_path / "tiny.yaml").write_text(f"{Path(cluster_file).read_text()}upload_gib: 1.0e-9\n")
    with pytest.raises(ConfigError, match=r"data\.train: .*rows\.jsonl has .* GiB"):
        commands.submit(run_file, cluster=str(tmp_path / "tiny.yaml"))
    (tmp_path / "plain.yaml").write_text("address: auto\n")
    with pytest.raises(ConfigError, match="does not say where jobs go"):
        commands.submit(run_file, cluster=str(tmp_path / "plain.yaml"))
    assert len(jobs.list_jobs(admitted.address)) == before


def test_a_job_that_is_stopped_saves_its_run_which_goes_on_later(
    admitted: Head, cluster_file: str, run_file: str, bucket: str
) -> None:
    long = ["name=long", "train.max_steps=400", "checkpoint.every_steps=200"]
    first = commands.submit(run_file, long, cluster=cluster_file)
    run = runs.Run(bucket, "long")
    end = time.monotonic() + 120
    while time.monotonic() < end and not (storage.exists(run.folder) and read_step(run) > 0):
        time.sleep(0.5)
    commands.stop_job(first.job.id, cluster=cluster_file)
    assert until_over(admitted.address, first.job.id, 120).state == "stopped"
    assert runs.read_status(run).state == "paused"
    saved = runs.checkpoints(run)[0].step
    assert 0 < saved < 200

    second = commands.submit(run_file, long, cluster=cluster_file)
    assert second.job.id != first.job.id
    assert until_over(admitted.address, second.job.id, 240).state == "succeeded"
    steps = [line["step"] for line in runs.read_metrics(run) if "loss" in line]
    assert steps == list(range(1, 401))


def read_step(run: runs.Run) -> int:
    return runs.read_status(run).step
