import errno
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from ftray import storage
from ftray.errors import StorageError
from ftray.storage import files


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "root") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "deep").mkdir(parents=True)
    (folder / "weights").write_bytes(b"w" * 3_000_000)
    (folder / "deep" / ".metadata").write_bytes(b"m")
    (folder / "record.json").write_bytes(b"{}")
    return folder


def test_importing_the_light_rooms_imports_nothing_heavy():
    program = (
        "import sys, ftray.storage, ftray.runs, ftray.registry\n"
        "heavy = {'torch', 'ray', 'transformers', 'fsspec', 'pyarrow', 'numpy', 'peft'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_root_is_the_configured_one_else_the_environment_else_the_home(monkeypatch):
    monkeypatch.setenv("FTRAY_HOME", "/srv/ftray")
    assert storage.storage_root("/data/../data/x") == "/data/../data/x"
    assert storage.storage_root(None) == "/srv/ftray"
    monkeypatch.setenv("FTRAY_HOME", "")
    assert storage.storage_root(None) == str(Path.home() / ".ftray")


def test_a_local_root_is_absolute_and_a_uri_stays_as_it_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert storage.storage_root("here") == str(tmp_path / "here")
    assert storage.storage_root("file:///data") == "/data"
    assert storage.storage_root("s3://bucket/ftray") == "s3://bucket/ftray"


def test_far_roots_use_a_cache_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("FTRAY_HOME", str(tmp_path))
    assert storage.local_cache("s3://bucket/ftray") == tmp_path / "cache"
    assert storage.local_cache("/data/ftray").as_posix() == "/data/ftray/cache"


def test_all_that_takes_space_is_listed_with_its_age_half_written_files_too(root, source):
    storage.upload(source, f"{root}/folder")
    storage.write(f"{root}/folder/.weights.0123abcd.tmp", b"half")
    held = {file.name: file for file in storage.contents(f"{root}/folder")}
    sizes = {".weights.0123abcd.tmp": 4, "deep/.metadata": 1, "record.json": 2, "weights": 3000000}
    assert {name: file.size for name, file in held.items()} == sizes
    assert all(
        time.time() - 60 < file.changed <= file.used <= time.time() for file in held.values()
    )
    assert [name for name in held if storage.is_staging_name(name)] == [".weights.0123abcd.tmp"]
    assert storage.contents(f"{root}/gone") == []


def test_a_deleted_folder_is_gone_as_a_whole(tmp_path, source):
    (source / "weights").unlink()
    (source / "weights").mkdir()
    (source / "weights" / "open").write_bytes(b"w")
    with (source / "weights" / "open").open("ab") as still_written:
        storage.delete(str(source))
        still_written.write(b"more")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("start", ["s3://bucket", "s3://bucket/", "/data", "/data/"])
def test_joining_never_doubles_a_slash(start):
    assert storage.join(start, "a", "b") == f"{start.rstrip('/')}/a/b"


def test_what_is_written_is_read_and_replaced(root):
    path = storage.join(root, "a", "b.json")
    assert not storage.exists(path)
    assert storage.read_if_exists(path) is None
    storage.write(path, b"one")
    storage.write(path, b"two")
    assert storage.exists(path)
    assert storage.read(path) == storage.read_if_exists(path) == b"two"


def test_create_keeps_what_is_there(root):
    path = storage.join(root, "claim.json")
    assert storage.create(path, b"first")
    assert not storage.create(path, b"second")
    assert storage.read(path) == b"first"


_CREATE_ALL = """
import json, sys
from ftray import storage
root, who = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
won = [n for n in range(50) if storage.create(storage.join(root, str(n)), who.encode() * 100_000)]
print(json.dumps(won))
"""


def test_of_many_creating_processes_exactly_one_wins_each_file(tmp_path):
    commands = [[sys.executable, "-c", _CREATE_ALL, str(tmp_path), who] for who in "123"]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe) for command in commands]
    for process in processes:
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        process.stdin.write(b"\n")
        process.stdin.flush()
    won = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert sorted(n for numbers in won for n in numbers) == list(range(50))
    for who, numbers in zip(b"123", won, strict=True):
        assert all((tmp_path / str(n)).read_bytes() == bytes([who]) * 100_000 for n in numbers)


def test_names_are_direct_children_sorted_without_files_that_are_still_being_written(root):
    for name in ("b", "a/deep", ".metadata"):
        storage.write(storage.join(root, name), b"")
    if not storage.is_uri(root):
        files.staging_name(Path(root, "c")).write_bytes(b"half")
    assert storage.names(root) == [".metadata", "a", "b"]
    assert storage.names(storage.join(root, "none")) == []
    assert storage.names(storage.join(root, "b", "under a file")) == []


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "status.json"
    storage.write(str(path), b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot write .*status.json: No space left") as caught:
        storage.write(str(path), b"new")
    assert "free some space" in caught.value.hint
    assert os.listdir(tmp_path) == ["status.json"]
    assert path.read_bytes() == b"old"


def test_upload_copies_all_but_the_last_and_returns_their_digests(root, source):
    folder = storage.join(root, "v")
    digests = storage.upload(source, folder, last=("record.json",))
    assert digests == {
        name: storage.sha256(source / name) for name in ("deep/.metadata", "weights")
    }
    assert storage.names(folder) == ["deep", "weights"]
    assert storage.verify(folder, digests) == []


def test_download_returns_what_was_uploaded(root, source, tmp_path):
    storage.upload(source, storage.join(root, "v"))
    storage.download(storage.join(root, "v"), tmp_path / "out")
    assert files.files(str(tmp_path / "out")) == ["deep/.metadata", "record.json", "weights"]
    assert (tmp_path / "out" / "weights").read_bytes() == (source / "weights").read_bytes()


def test_downloading_a_missing_folder_is_an_error(root, tmp_path):
    with pytest.raises(StorageError, match="no such folder"):
        storage.download(storage.join(root, "none"), tmp_path / "out")


def test_verify_names_what_is_missing_and_what_differs(root, source):
    digests = storage.upload(source, root)
    storage.write(storage.join(root, "weights"), b"bit rot")
    storage.delete(storage.join(root, "deep/.metadata"))
    missing, different = sorted(storage.verify(root, digests), key=len)
    assert missing == f"{root}/deep/.metadata: missing"
    assert different.startswith(f"{root}/weights: its SHA-256 is ")


def test_a_local_path_is_its_own_local_copy(tmp_path):
    assert storage.local_copy(str(tmp_path), tmp_path / "cache") == tmp_path
    assert not (tmp_path / "cache").exists()


def test_a_uri_is_copied_into_the_cache_once(source, tmp_path):
    uri, cache = f"memory://{uuid.uuid4().hex}/v", tmp_path / "cache"
    storage.upload(source, uri)
    folder = storage.local_copy(uri, cache)
    file = storage.local_copy(storage.join(uri, "weights"), cache)
    storage.delete(uri)
    assert storage.local_copy(uri, cache) == folder
    assert files.files(str(folder)) == ["deep/.metadata", "record.json", "weights"]
    assert file.read_bytes() == (source / "weights").read_bytes()
    assert len(files.files(str(cache))) == 4


def test_delete_removes_folders_and_files_and_accepts_missing_ones(root, source):
    storage.upload(source, storage.join(root, "v", "1"))
    storage.delete(storage.join(root, "v", "1", "weights"))
    assert storage.names(storage.join(root, "v", "1")) == ["deep", "record.json"]
    storage.delete(storage.join(root, "v"))
    storage.delete(storage.join(root, "v"))
    assert not storage.exists(storage.join(root, "v"))


def test_delete_can_keep_one_child(root, source):
    storage.upload(source, root)
    storage.delete(root, keep="weights")
    assert storage.names(root) == ["weights"]


def test_what_an_interrupted_delete_leaves_is_no_folder_any_more(tmp_path, source, monkeypatch):
    folder = tmp_path / "v"
    storage.upload(source, str(folder))

    def interrupted(path: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("shutil.rmtree", interrupted)
    with pytest.raises(StorageError, match="Input/output error"):
        storage.delete(str(folder))
    assert not storage.exists(str(folder))
    left = {file.name.partition("/")[0] for file in storage.contents(str(tmp_path))} - {"source"}
    assert [storage.is_staging_name(name) for name in left] == [True]


def test_errors_name_the_path_and_the_way_out(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot read .*/none: No such file") as caught:
        storage.read(str(tmp_path / "none"))
    assert caught.value.hint == "check the path"
    with pytest.raises(StorageError, match=r"cannot write .*/file/x: .*"):
        storage.write(str(tmp_path / "file" / "x"), b"")


def test_a_missing_package_is_answered_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(StorageError, match="no package for 'gs://'") as caught:
        storage.read("gs://bucket/x")
    assert caught.value.hint == "pip install gcsfs"


def test_an_unknown_scheme_is_answered_with_the_known_ones():
    with pytest.raises(StorageError, match="unknown scheme 'foo://'") as caught:
        storage.exists("foo://bucket/x")
    assert "s3://" in caught.value.hint


def test_a_store_without_conditional_create_is_refused_where_two_could_write(tmp_path):
    with pytest.raises(StorageError, match="no conditional create"):
        storage.create(f"local://{tmp_path}/claim", b"")


def test_a_file_name_that_leads_out_of_its_folder_is_refused(tmp_path):
    uri = f"memory://{uuid.uuid4().hex}"
    storage.write(f"{uri}/v/../../evil", b"")
    with pytest.raises(StorageError, match="leads out"):
        storage.download(f"{uri}/v", tmp_path / "out")


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Not a directory") as caught:
        storage.create(str(tmp_path / "file" / "runs" / "1.json"), b"")
    assert "choose another root" in caught.value.hint
