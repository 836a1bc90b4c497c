"""`ftray submit`: a run or a search becomes a job of a cluster."""

import hashlib
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ftray import credentials, jobs, storage
from ftray.config.base import to_yaml
from ftray.config.cluster import ClusterConfig
from ftray.config.run import RunConfig
from ftray.config.search import SearchConfig
from ftray.errors import ClusterError, ConfigError
from ftray.jobs import JobInfo, JobSpec
from ftray.submit.arrival import ARRIVED
from ftray.submit.asked import Asked
from ftray.submit.room import check_room
from ftray.submit.travel import travelling
from ftray.versions import encode, versions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Submitted:
    """A job that its cluster has taken."""

    job: JobInfo
    name: str  # of the run or the search
    storage: str
    cluster: str


def submit(asked: Asked, on: ClusterConfig, source: str) -> Submitted:
    """Check, upload and submit; `source` is what the user calls the cluster.

    Returns once the command has begun on the cluster, or waits there for a place.
    """
    address = reached(on, source)
    root = storage.storage_root(asked.run.storage)
    env = _environment(asked.how.env)
    _check_ray(address)
    if not storage.is_uri(root) and not on.shared_files:
        raise ConfigError(
            f"the storage root {root} is a folder of this machine, and {source} does not say that"
            " its machines see it",
            "set storage=s3://… (or gs://…); if they do share this folder: shared_files: true",
        )
    if asked.search is None:  # what a search needs follows from its trials: it says so itself
        check_room(asked.run.scaling, address, is_patient=asked.how.waits)
    with tempfile.TemporaryDirectory(prefix="ftray-submit-") as folder:
        run, search = travelling(asked.run, asked.search, root, on, Path(folder))
        spec = _spec(asked, run, search, Path(folder), env)
        jobs.submit(address, spec)
    job = _begun(address, spec)
    return Submitted(job, asked.name, root, source)


def reached(on: ClusterConfig, source: str) -> str:
    """Return the address for jobs of a cluster, and get ready to show its token."""
    if on.jobs is None:
        raise ConfigError(
            f"{source}: it does not say where jobs go",
            "add jobs: http://HEAD:8265, the address of the cluster's dashboard",
        )
    if on.token_file is not None:
        credentials.use_token(on.token_file)
    return on.jobs.rstrip("/")


def _environment(names: Sequence[str]) -> dict[str, str]:
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ConfigError(f"--env {missing[0]}: there is no such variable here")
    for name in names:
        if any(part in name.upper() for part in _SECRET):
            logger.warning(
                "%s is sent with the job, where all who see the cluster's dashboard can read it;"
                " better set it in the environment of the cluster itself",
                name,
            )
    return {name: os.environ[name] for name in names}


_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")
_STOP_SECONDS = 120  # to save after the current step, and to upload the checkpoint


def _check_ray(address: str) -> None:
    theirs, mine = jobs.ray_version(address), versions().ray
    if theirs != mine:
        raise ClusterError(
            f"the cluster at {address} runs Ray {theirs}, this is Ray {mine}",
            f"pip install 'ray=={theirs}' here, or upgrade the cluster",
        )


def _spec(
    asked: Asked,
    run: RunConfig,
    search: SearchConfig | None,
    folder: Path,
    env: Mapping[str, str],
) -> JobSpec:
    (folder / "run.yaml").write_text(to_yaml(run), encoding="utf-8")
    (folder / "cluster.yaml").write_text("address: auto\n", encoding="utf-8")
    files = ["run.yaml"]
    if search is not None:
        (folder / "space.yaml").write_text(to_yaml(search), encoding="utf-8")
        files.append("space.yaml")
    verb = "train" if search is None else "tune"
    overwrite = ["--overwrite"] if asked.how.overwrite else []
    asks = [verb, *files, "--cluster", "cluster.yaml", *overwrite]
    content = "\n".join([*asks, *((folder / file).read_text("utf-8") for file in files)])
    return JobSpec(
        id=_job_id(asked.name, asked.how.key),
        command=("python", "-m", "ftray.submit.arrival", encode(versions()), *asks),
        working_dir=folder,
        env={**env, "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)},
        metadata={
            "run": asked.name,
            "verb": verb,
            "content": hashlib.sha256(content.encode()).hexdigest(),
        },
    )


def _job_id(name: str, key: str | None) -> str:
    mark = secrets.token_hex(4) if key is None else hashlib.sha256(key.encode()).hexdigest()[:16]
    return f"{name}-{mark}"


def _begun(address: str, spec: JobSpec) -> JobInfo:
    """Wait until the command has begun, failed or waits for a place, for some seconds at most."""
    end = time.monotonic() + _BEGIN_SECONDS
    while True:
        job = jobs.find(address, spec.id)
        if job is None:
            raise ClusterError(f"the cluster at {address} has lost job {spec.id}", "submit again")
        _check_same(job, spec)
        if job.state == "failed" or job.is_over or time.monotonic() > end:
            break
        if job.state == "running" and ARRIVED in "".join(jobs.logs(address, spec.id)):
            break
        time.sleep(0.3)
    if job.state == "failed" and ARRIVED not in "".join(jobs.logs(address, spec.id)):
        raise _refused(address, job)
    return job


_BEGIN_SECONDS = 20.0


def _check_same(job: JobInfo, spec: JobSpec) -> None:
    if job.metadata.get("content") != spec.metadata["content"]:
        raise ConfigError(
            f"the key was used before, by job {job.id}, for something else",
            f"ftray jobs show {job.id}; or choose another --key",
        )


def _refused(address: str, job: JobInfo) -> ClusterError:
    """Say why a command ended before it began: other versions, or no ftray at all."""
    lines = "".join(jobs.logs(address, job.id)).splitlines()
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if said:
        return ClusterError(said[0], "install the same on both sides")
    if any("No module named" in line or "not found" in line for line in lines):
        return ClusterError(
            f"the cluster has no ftray: {lines[-1]}",
            f"install ftray {versions().ftray} for the `python` on the PATH of its machines",
        )
    return ClusterError(f"job {job.id} did not start: {job.message}", f"ftray jobs logs {job.id}")
