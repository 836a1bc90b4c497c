"""What `ftray gc` finds of the service's files and jobs, and of uploads of `ftray submit`."""

import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from ftray import runs, searches, storage
from ftray.accounts.audit import Actor
from ftray.accounts.database import Database, open_database
from ftray.cli import main
from ftray.config.data import DataConfig
from ftray.config.run import ModelConfig, RunConfig, TrainConfig
from ftray.config.serve import FilesConfig, JobsConfig
from ftray.garbage.policy import DAY, Policy
from ftray.garbage.sweep import look, sweep
from ftray.records import encode
from ftray.runs import State, Status
from ftray.searches import Search, SearchStatus
from ftray.service.books import Books
from ftray.service.files import Files
from ftray.service.jobs import Jobs, Parent
from ftray.service.order import write_order
from ftray.service.requests import JobRequest
from ftray.service.tables import FileRow, JobRow
from ftray.service.uploads import Upload
from ftray.submit.uploads import Uploads
from tests.unit.test_garbage import WEEK, age, an_adapter, total

ME = Actor("mine")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return str(tmp_path / "root")


@pytest.fixture
def books(ready_url: str, root: str):
    database = open_database(ready_url)
    yield Books(database, root)
    database.close()


@pytest.fixture
def files(books: Books) -> Files:
    return Files(books.database, books.root, FilesConfig())


def add(files: Files, data: bytes) -> FileRow:
    return files.add(ME, Upload(BytesIO(data), "train.jsonl", None))


def a_job(files: Files, file: FileRow) -> JobRow:
    jobs = Jobs(files.database, files.root, ModelConfig(name="base"), JobsConfig(), 0.0)
    row = jobs.create(ME, JobRequest(model="base", training_file=file.id), Parent(None), None)
    write_order(files.root, row.id, row.run, None)
    return row


def end(database: Database, job: JobRow) -> None:
    with database.writing() as session:
        session.get_one(JobRow, job.id).status = "failed"


def may_go(books: Books | None, root: str, policy: Policy = WEEK) -> dict[str, str]:
    found = look(root, policy, books).may_go
    return {garbage.path.removeprefix(f"{root}/"): garbage.why for garbage in found}


def test_a_projects_file_stays_however_old_and_a_deleted_one_goes_after_a_day(
    files: Files, books: Books, root: str
):
    kept, gone = add(files, b"{}\n"), add(files, b"[]\n")
    files.delete(ME, gone.id)
    assert may_go(books, root) == {}
    age(f"{root}/files", 400)
    assert may_go(books, root) == {f"files/{gone.blob}": "no file and no job needs it"}
    disk = sweep(look(root, WEEK, books), WEEK, books)
    assert (disk.freed, disk.stayed) == (3, [])
    assert storage.names(f"{root}/files") == [kept.blob]
    assert total(look(root, WEEK, books), "files") == (1, 0)


def test_an_open_jobs_data_and_order_stay_and_go_some_time_after_its_end(
    files: Files, books: Books, root: str
):
    file = add(files, b"{}\n")
    job = a_job(files, file)
    files.delete(ME, file.id)
    age(root, 400)
    assert may_go(books, root, Policy(0)) == {}
    end(files.database, job)
    age(f"{root}/jobs", 6)
    assert may_go(books, root) == {f"files/{file.blob}": "no file and no job needs it"}
    age(f"{root}/jobs", 8)
    assert may_go(books, root)[f"jobs/{job.id}"] == "its job has ended"
    disk = sweep(look(root, WEEK, books), WEEK, books)
    assert len(disk.gone) == 2
    assert storage.names(f"{root}/jobs") == storage.names(f"{root}/files") == []


def test_bytes_that_are_uploaded_again_meanwhile_stay(files: Files, books: Books, root: str):
    file = add(files, b"{}\n")
    files.delete(ME, file.id)
    age(f"{root}/files", 2)
    before = look(root, WEEK, books)
    assert len(before.may_go) == 1
    again = add(files, b"{}\n")
    disk = sweep(before, WEEK, books)
    assert (disk.gone, [piece.is_error for piece in disk.stayed]) == ([], [False])
    assert not books.drop(again.blob)
    assert Path(root, "files", again.blob).read_bytes() == b"{}\n"


def test_what_was_left_by_nobody_we_know_goes_where_the_database_knows_others(
    files: Files, books: Books, root: str
):
    add(files, b"{}\n")
    stray = f"{'ab' * 32}.csv"
    storage.write(f"{root}/files/{stray}", b"step\n")
    storage.write(f"{root}/files/notes.txt", b"mine")
    age(f"{root}/files", 2)
    assert list(may_go(books, root)) == [f"files/{stray}"]


def test_a_database_that_knows_none_of_the_files_lets_none_go(
    files: Files, books: Books, root: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    a_job(files, add(files, b"{}\n"))
    age(root, 400)
    other = open_database(f"sqlite:///{tmp_path}/other.db")
    assert may_go(Books(other, root), root, Policy(0)) == {}
    assert "set FTRAY_DATABASE" in caplog.text
    other.close()
    assert may_go(None, root, Policy(0)) == {}
    assert total(look(root, WEEK), "jobs") == (1, 0)


def test_gc_reads_the_database_in_the_root_and_makes_none(
    root: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("FTRAY_DATABASE", raising=False)
    storage.write(f"{root}/files/{'ab' * 32}.jsonl", b"{}\n")
    age(root, 400)
    assert main(["gc", "--delete", "--storage", root]) == 0
    assert not Path(root, "accounts.db").exists()
    assert "0 B freed" in capsys.readouterr().out
    database = open_database(f"sqlite:///{root}/accounts.db")
    files = Files(database, root, FilesConfig())
    files.delete(ME, add(files, b"[]\n").id)
    database.close()
    age(f"{root}/files", 2)
    assert main(["gc", "--delete", "--storage", root]) == 0
    assert "6 B freed, 2 deleted" in capsys.readouterr().out


@pytest.fixture
def uploaded(root: str, tmp_path: Path) -> str:
    (tmp_path / "train.jsonl").write_text("{}\n")
    return Uploads(root, 1).path(str(tmp_path / "train.jsonl"), "data.train")


def a_run(root: str, data: str, state: State, adapter: str | None = None) -> None:
    config = RunConfig(name="sent", data=DataConfig(train=data), train=TrainConfig(epochs=1))
    run = runs.open_run(root, config, overwrite=True)
    heartbeat = time.time() - (0 if state == "running" else 30 * DAY)
    status = Status(state=state, heartbeat=heartbeat, adapter=adapter)
    storage.write(f"{run.folder}/status.json", encode(status))


def test_an_upload_goes_when_nobody_has_asked_for_it_lately(root, uploaded, tmp_path):
    name = f"uploads/{storage.sha256(tmp_path / 'train.jsonl')}"
    assert uploaded == f"{root}/{name}/data.jsonl"
    age(f"{root}/uploads", 0.9)
    assert may_go(None, root, Policy(0)) == {}
    age(f"{root}/uploads", 8)
    assert may_go(None, root) == {name: "no run uses it"}
    Uploads(root, 1).path(str(tmp_path / "train.jsonl"), "data.train")  # its job may have to wait
    assert may_go(None, root, Policy(0)) == {}
    age(f"{root}/uploads", 8)
    assert sweep(look(root, WEEK), WEEK).freed == 3
    assert storage.names(f"{root}/uploads") == []


@pytest.mark.parametrize("state", ["queued", "running", "paused", "failed"])
def test_an_upload_stays_while_its_run_is_at_work_or_can_go_on(root, uploaded, state: State):
    a_run(root, uploaded, state)
    age(f"{root}/uploads", 30)
    assert may_go(None, root, Policy(0)) == {}
    named = may_go(None, root, Policy(0, frozenset(["sent"])))
    assert list(named.values()) == ([] if state == "running" else ["no run goes on with it"])


def test_an_upload_of_a_published_run_goes_unless_a_search_uses_it_too(root, uploaded, tmp_path):
    a_run(root, uploaded, "succeeded", an_adapter(root, tmp_path).ref)
    age(f"{root}/uploads", 30)
    assert list(may_go(None, root).values()) == ["no run goes on with it"]
    search = Search(root, "ranks")
    status = SearchStatus(state="paused", heartbeat=time.time() - 30 * DAY)
    storage.write(f"{search.folder}/status.json", encode(status))
    storage.write(f"{search.folder}/space.yaml", f"holdout: {{path: {uploaded}}}".encode())
    assert may_go(None, root) == {}
    searches.change_status(search, lambda found: replace(found, state="running"))
    assert may_go(None, root) == {}
