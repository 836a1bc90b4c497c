"""Sources and the storage root on S3, against a real S3 server on this machine."""

import gzip
import http.server
import json
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from ftray import storage
from ftray.config.data import DataConfig, SourceConfig, sources_of
from ftray.data.reading.files import Range, content_ids, find_files, plan_ranges
from ftray.data.reading.readers import RangeReader, Row
from ftray.data.tokens.cache import ShardCache
from ftray.data.tokens.pipeline import make_all, plan_tokens
from ftray.data.tokens.rows import Rows
from ftray.errors import DataError, StorageError

ROWS = [{"n": n, "text": f"row {n} – naïve 四"} for n in range(2000)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An S3 server with a bucket, known to clients by the environment as a user would set it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "tester")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3", use_listings_cache=False).mkdir("s3://bucket")
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def folder(server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files on disk that also lie in s3://bucket/data."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "deep").mkdir()
    (folder / "a.jsonl").write_bytes(LINES)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(LINES))
    (folder / "c.json").write_text(json.dumps(ROWS))
    (folder / "deep/d.csv").write_text("n,text\n" + "".join(f'{n},"row\n"\n' for n in range(50)))
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, folder / "deep/e.parquet", row_group_size=500)
    with pa.ipc.new_file(folder / "f.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    storage.upload(folder, "s3://bucket/data")
    return folder


def ranges_of(path: object) -> list[Range]:
    return plan_ranges(find_files([SourceConfig(path=str(path))]), 20_000)


def read(path: object) -> list[dict[str, object]]:
    rows = [row for part in ranges_of(path) for row in RangeReader(part)]
    return [row.values for row in rows if isinstance(row, Row)]


def test_a_folder_has_the_same_rows_as_on_disk(folder: Path):
    rows = read("s3://bucket/data")
    assert len(rows) == 5 * len(ROWS) + 50
    assert rows == read(folder)


@pytest.mark.parametrize("pattern", ["a.jsonl", "*.jsonl*", "**/*.parquet", "deep", "f.arrow"])
def test_files_globs_and_prefixes_are_found_as_on_disk(pattern: str, folder: Path):
    remote, local = (
        find_files([SourceConfig(path=f"{root}/{pattern}")])
        for root in ("s3://bucket/data", folder)
    )
    assert [(file.name, file.size, file.kind) for file in remote] == [
        (file.name, file.size, file.kind) for file in local
    ]
    assert all(file.path.startswith("s3://bucket/data/") for file in remote)


def test_a_range_is_read_alone_and_ranges_are_those_of_the_file_on_disk(folder: Path):
    remote, local = ranges_of("s3://bucket/data/a.jsonl"), ranges_of(folder / "a.jsonl")
    assert [(part.start, part.end) for part in remote] == [(p.start, p.end) for p in local]
    assert len(remote) > 4
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda part: list(RangeReader(part)), remote))
    assert parts == [list(RangeReader(part)) for part in local]


def test_an_object_that_is_put_anew_is_noticed_by_its_etag(folder: Path):
    uri = "s3://bucket/changing/a.jsonl"
    storage.write(uri, LINES)
    before = find_files([SourceConfig(path=uri)])
    part = plan_ranges(before)[0]
    assert len(list(RangeReader(part))) == len(ROWS)
    rows = iter(RangeReader(part))
    next(rows)
    storage.write(uri, LINES[:-30] + b"\n" * 30)
    with pytest.raises(DataError, match=r"a.jsonl: changed while it was read"):
        list(rows)
    assert content_ids(before) != content_ids(find_files([SourceConfig(path=uri)]))


@pytest.mark.parametrize(
    ("uri", "message", "hint"),
    [
        ("s3://bucket/data/a.josnl", "a.josnl: no such file", "did you mean 's3://bucket/data/a.j"),
        ("s3://bucket/none/*.jsonl", "matches no file", "bucket or folder s3://bucket/none"),
        ("s3://no-bucket/a.jsonl", "s3://no-bucket/a.jsonl: no such file", "s3://no-bucket"),
        (
            "s3://no-bucket/*.jsonl",
            "matches no file",
            "there is no bucket or folder s3://no-bucket",
        ),
    ],
)
def test_what_is_not_there_is_said_so(uri: str, message: str, hint: str, folder: Path):
    with pytest.raises(DataError) as failed:
        find_files([SourceConfig(path=uri)])
    assert message in failed.value.message
    assert hint in failed.value.hint


def test_files_of_a_root_appear_whole_and_are_listed_replaced_and_deleted(server: str):
    root = "s3://bucket/root"
    assert not storage.exists(root)
    assert storage.names(root) == []
    storage.write(f"{root}/runs/a/status.json", b"old")
    storage.write(f"{root}/runs/a/status.json", b"new")
    storage.write(f"{root}/runs/b/record.json", b"{}")
    assert storage.exists(root)
    assert storage.read(f"{root}/runs/a/status.json") == b"new"
    assert storage.read_if_exists(f"{root}/runs/a/none") is None
    assert storage.names(f"{root}/runs") == ["a", "b"]
    storage.delete(f"{root}/runs/a")
    assert storage.names(f"{root}/runs") == ["b"]
    storage.delete(f"{root}/runs/a")
    with pytest.raises(StorageError, match=r"status.json"):
        storage.read(f"{root}/runs/a/status.json")


def test_of_many_who_create_a_file_exactly_one_wins(server: str):
    path = "s3://bucket/claims/1.json"
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: storage.create(path, str(n).encode()), range(8)))
    assert sum(won) == 1
    assert storage.read(path) == str(won.index(True)).encode()


def test_a_folder_goes_up_is_verified_and_comes_down_again(server: str, tmp_path: Path):
    source, root = tmp_path / "source", "s3://bucket/adapters/a/1"
    (source / "deep").mkdir(parents=True)
    (source / "weights").write_bytes(os.urandom(6 * 2**20))  # S3 takes more than 5 MiB in parts
    (source / "deep/config.json").write_bytes(b"{}")
    (source / "record.json").write_bytes(b"last")
    digests = storage.upload(source, root, last=("record.json",))
    assert sorted(digests) == ["deep/config.json", "weights"]
    assert storage.verify(root, digests) == []
    storage.download(root, tmp_path / "down")
    assert (tmp_path / "down/weights").read_bytes() == (source / "weights").read_bytes()
    assert storage.names(root) == ["deep", "weights"]
    copy = storage.local_copy(root, tmp_path / "cache")
    assert (copy / "deep/config.json").read_bytes() == b"{}"
    storage.write(f"{root}/weights", b"rot")
    assert "its SHA-256 is" in storage.verify(root, digests)[0]


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers as S3 does to a user who may not read."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Keep the test's output free of requests."""


def test_a_server_that_refuses_is_said_to(folder: Path, monkeypatch: pytest.MonkeyPatch):
    fsspec.filesystem("s3").clear_instance_cache()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        for name in ("a.jsonl", "*.jsonl"):
            with pytest.raises(DataError, match=r"Forbidden|Access Denied") as failed:
                find_files([SourceConfig(path=f"s3://bucket/data/{name}")])
            assert "get read access" in failed.value.hint
        server.shutdown()
    fsspec.filesystem("s3").clear_instance_cache()


def test_a_server_that_is_not_there_is_said_so(folder: Path, monkeypatch: pytest.MonkeyPatch):
    fsspec.filesystem("s3").clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(DataError, match="Could not connect") as failed:
        find_files([SourceConfig(path="s3://bucket/data/a.jsonl")])
    assert "AWS_ENDPOINT_URL" in failed.value.hint
    fsspec.filesystem("s3").clear_instance_cache()


def test_tokens_of_a_root_on_s3_are_those_of_a_local_one(
    folder: Path, small_model: Path, tmp_path: Path
) -> None:
    """Made from a source on S3, kept there, and read through a small cache."""
    made = []
    for source, root in (
        (str(folder / "b.jsonl.gz"), str(tmp_path / "root")),
        ("s3://bucket/data/b.jsonl.gz", "s3://bucket/root"),
    ):
        data = DataConfig(train=source, format="text")
        job = plan_tokens(sources_of(data.train), data, small_model, root)
        job = replace(job, recipe=replace(job.recipe, shard_tokens=2000))
        made.append(make_all(job))
        assert make_all(job) == made[-1]
    cache = ShardCache(tmp_path / "cache", 100_000)
    local, remote = (Rows(tokens.folder, cache) for tokens in made)
    assert len(remote.columns) == len(ROWS)
    assert remote.columns.digest.tolist() == local.columns.digest.tolist()
    for key in remote.columns.key[::50]:
        assert remote.ids(key).tolist() == local.ids(key).tolist()
        assert remote.place(key) == local.place(key)
