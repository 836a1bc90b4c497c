"""A project's share of the storage: files, runs, checkpoints and models, on both databases."""

from io import BytesIO
from pathlib import Path

import pytest
import sqlalchemy as sa
from processes import Processes, work

from ftray import storage
from ftray.accounts.audit import Actor
from ftray.accounts.database import Database
from ftray.accounts.grant import Quota
from ftray.accounts.projects import set_project
from ftray.config.run import ModelConfig
from ftray.config.serve import FilesConfig, JobsConfig
from ftray.serve.openai.errors import ApiError
from ftray.service.controller import Controller, Ground
from ftray.service.files import Files
from ftray.service.jobs import Jobs, Parent
from ftray.service.requests import JobRequest
from ftray.service.retention import Retention
from ftray.service.shares import Meter, forget_size, stored
from ftray.service.tables import JobRow
from ftray.service.uploads import Upload

ME = Actor("mine")
LINES = b"{}\n" * 100


@pytest.fixture
def files(database: Database, tmp_path: Path) -> Files:
    return Files(database, str(tmp_path / "root"), FilesConfig())


@pytest.fixture
def jobs(files: Files) -> Jobs:
    return Jobs(files.database, files.root, ModelConfig(name="base"), JobsConfig(), 0.0)


def add(files: Files, who: Actor = ME) -> str:
    return files.add(who, Upload(BytesIO(LINES), "train.jsonl", None)).id


def create(jobs: Jobs, file: str, who: Actor = ME) -> JobRow:
    return jobs.create(who, JobRequest(model="base", training_file=file), Parent(None), None)


def leave(root: str, name: str, size: int) -> None:
    storage.write(f"{root}/{name}", b"x" * size)


def change(database: Database, job: JobRow, **values: object) -> None:
    with database.writing() as session:
        session.execute(sa.update(JobRow).where(JobRow.id == job.id).values(**values))


def kept(database: Database, project: str = "mine") -> int:
    with database.reading() as session:
        return stored(session, project)


def test_runs_checkpoints_and_models_count_beside_files(files: Files, jobs: Jobs):
    job, other = create(jobs, add(files)), create(jobs, add(files, Actor("other")), Actor("other"))
    change(files.database, job, stored_bytes=None)
    for name, size in (("run.yaml", 10), ("checkpoints/step-000001-a1/weights", 500)):
        leave(files.root, f"runs/ft-{job.short}/{name}", size)
    leave(files.root, f"adapters/ft-{job.short}/1/weights", 1000)
    leave(files.root, f"adapters/ft-{other.short}/1/weights", 7)
    leave(files.root, f"runs/ft-{job.short}x/run.yaml", 9)
    assert kept(files.database) == 300
    Meter(files.database, files.root).round()
    assert kept(files.database) == 300 + 1510
    assert kept(files.database, "other") == 300


def test_a_search_counts_with_the_runs_that_are_its_trials(files: Files, jobs: Jobs):
    job = create(jobs, add(files))
    change(files.database, job, stored_bytes=None)
    leave(files.root, f"searches/ft-{job.short}/trials/t1/state", 20)
    leave(files.root, f"runs/ft-{job.short}.t1/checkpoints/step-000001-a1/weights", 300)
    leave(files.root, "runs/other.t1/checkpoints/step-000001-a1/weights", 5)
    Meter(files.database, files.root).round()
    assert kept(files.database) == 300 + 320


def test_what_is_at_work_is_measured_once_a_minute_and_the_rest_when_it_changed(
    files: Files, jobs: Jobs
):
    running, ended = create(jobs, add(files)), create(jobs, add(files))
    for job in (running, ended):
        leave(files.root, f"runs/ft-{job.short}/run.yaml", 10)
    change(files.database, running, submission="one")
    meter = Meter(files.database, files.root)
    meter.round()
    assert kept(files.database) == 600 + 10
    leave(files.root, f"runs/ft-{running.short}/checkpoints/c/weights", 100)
    meter.round()  # too soon
    change(files.database, ended, stored_bytes=None)
    meter.round()
    assert kept(files.database) == 600 + 20
    Meter(files.database, files.root).round()
    assert kept(files.database) == 600 + 120


def test_a_full_project_uploads_nothing_and_creates_no_job_until_a_model_is_deleted(
    files: Files, jobs: Jobs
):
    set_project(files.database, "mine", Quota(storage_bytes=1000))
    file = add(files)
    job = create(jobs, file)
    change(files.database, job, stored_bytes=None, status="succeeded")
    leave(files.root, f"adapters/ft-{job.short}/1/weights", 700)
    meter = Meter(files.database, files.root)
    meter.round()
    for act in (lambda: add(files), lambda: create(jobs, file)):
        with pytest.raises(ApiError, match="share is used up") as refused:
            act()
        assert refused.value.kind.code == "insufficient_quota"
    create(jobs, add(files, Actor("other")), Actor("other"))
    storage.delete(f"{files.root}/adapters/ft-{job.short}/1")
    with files.database.writing() as session:
        forget_size(session, f"ft-{job.short}")
    meter.round()
    assert kept(files.database) == 300
    create(jobs, add(files))


def test_a_job_of_a_full_project_waits_and_starts_when_there_is_room(
    files: Files, jobs: Jobs, launcher: Processes
):
    file, more = add(files), add(files)
    job = create(jobs, file)
    set_project(files.database, "mine", Quota(storage_bytes=600))
    controller = Controller(Ground(files.database, files, launcher, JobsConfig(), work), "one")
    controller.round()
    assert jobs.find("mine", job.id).submission is None
    files.delete(ME, more)
    controller.round()
    assert jobs.find("mine", job.id).submission == f"{job.id}-1"
    controller.close()


def test_a_folder_that_retention_takes_is_counted_no_more(files: Files, jobs: Jobs):
    job = create(jobs, add(files))
    leave(files.root, f"searches/ft-{job.short}/status", 40)
    change(files.database, job, stored_bytes=40, status="failed", finished=1.0)
    assert kept(files.database) == 340
    Retention(files.database, files.root, JobsConfig()).sweep()
    Meter(files.database, files.root).round()
    assert kept(files.database) == 300
