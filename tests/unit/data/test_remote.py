"""Sources behind URIs are read as those on disk, in parts where their server sends parts."""

import gzip
import http.server
import io
import json
import re
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ftray.config.data import SourceConfig
from ftray.data.reading.files import Range, content_ids, find_files, plan_ranges
from ftray.data.reading.readers import RangeReader, Row
from ftray.errors import DataError

ROWS = [{"n": n, "text": f"row {n} – naïve 四"} for n in range(300)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def tables() -> dict[str, bytes]:
    parquet, arrow, table = io.BytesIO(), io.BytesIO(), pa.Table.from_pylist(ROWS)
    pq.write_table(table, parquet, row_group_size=50)
    with pa.ipc.new_stream(arrow, table.schema) as writer:
        writer.write_table(table)
    return {"a.parquet": parquet.getvalue(), "a.arrow": arrow.getvalue()}


CONTENTS = {
    "a.jsonl": LINES,
    "lines.json": LINES,
    "a.jsonl.gz": gzip.compress(LINES),
    "list.json": json.dumps(ROWS).encode(),
    "a.csv": b"n,text\n" + b"".join(f"{r['n']},{r['text']}\n".encode() for r in ROWS),
    **tables(),
}


def ranges_of(uri: str) -> list[Range]:
    return plan_ranges(find_files([SourceConfig(path=uri)]), 3000)


def read(uri: str) -> list[dict[str, object]]:
    rows = [row for part in ranges_of(uri) for row in RangeReader(part)]
    values = [row.values for row in rows if isinstance(row, Row)]
    assert len(values) == len(rows)
    return [{**row, "n": int(row["n"])} for row in values]


@pytest.fixture
def store() -> str:
    """A folder in fsspec's store in memory, with a file of each kind."""
    root = f"memory://{uuid.uuid4().hex}/data"
    filesystem = fsspec.filesystem("memory")
    for name, content in CONTENTS.items():
        filesystem.pipe_file(f"{root}/{name}", content)
    hidden = (".hidden.jsonl", "deep/.cache/b.jsonl")
    for name in ("_SUCCESS", *hidden, "deep/b.jsonl", "notes.md", "v[2].jsonl"):
        filesystem.pipe_file(f"{root}/{name}", b'{"n": 1}\n')
    return root


def test_files_of_a_store_are_found_by_name_glob_and_folder(store: str):
    def names(uri: str) -> list[str]:
        files = find_files([SourceConfig(path=uri)])
        assert all(file.path.startswith(f"{store}/") for file in files)
        return [file.path.removeprefix(f"{store}/") for file in files]

    assert names(f"{store}/a.jsonl") == ["a.jsonl"]
    assert names(f"{store}/[al]*.json*") == ["a.jsonl", "a.jsonl.gz", "lines.json", "list.json"]
    assert names(f"{store}/**/b.jsonl") == ["deep/b.jsonl"]
    assert names(f"{store}/**/.cache/b.jsonl") == ["deep/.cache/b.jsonl"]
    assert names(f"{store}/v[2].jsonl") == ["v[2].jsonl"]  # no pattern, but a name like one
    assert names(f"{store}/") == names(store) == sorted([*CONTENTS, "deep/b.jsonl", "v[2].jsonl"])


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_of_a_store_has_the_rows_of_one_on_disk(name: str, store: str):
    assert read(f"{store}/{name}") == ROWS
    divided = name in ("a.jsonl", "lines.json", "a.parquet")
    assert (len(ranges_of(f"{store}/{name}")) > 2) == divided


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("a.jsnol", "a.jsnol: no such file", "did you mean '{store}/a.jsonl'?"),
        ("*.txt", "*.txt: matches no file", "in {store}: a.arrow, a.csv"),
        ("other/a.jsonl", "a.jsonl: no such file", "there is no bucket or folder {store}/other"),
        ("notes.md", "unknown kind '.md'", "ftray reads .jsonl"),
    ],
)
def test_what_a_store_has_not_is_named_with_what_it_has(
    name: str, message: str, hint: str, store: str
):
    with pytest.raises(DataError) as failed:
        find_files([SourceConfig(path=f"{store}/{name}")])
    assert message in failed.value.message
    assert hint.format(store=store) in failed.value.hint


def test_an_object_that_is_put_anew_is_noticed_and_has_another_identity(store: str):
    uri = f"{store}/a.jsonl"
    before = find_files([SourceConfig(path=uri)])
    part = plan_ranges(before)[0]
    rows = iter(RangeReader(part))
    next(rows)
    fsspec.filesystem("memory").pipe_file(uri, LINES)
    with pytest.raises(DataError, match=r"a.jsonl: changed while it was read"):
        list(rows)
    assert content_ids(before) != content_ids(find_files([SourceConfig(path=uri)]))


@pytest.mark.parametrize(
    ("uri", "message", "hint"),
    [
        ("gs://bucket/a.jsonl", "no package for 'gs://' is installed", "pip install gcsfs"),
        ("sthree://bucket/a.jsonl", "unknown scheme 'sthree://'", "s3://"),
        ("memory://nowhere", "nowhere: no such file", "there is no bucket memory://nowhere"),
        ("https://localhost/*.jsonl", "the web has no folders to search", "list the files"),
    ],
)
def test_a_uri_that_cannot_be_reached_says_why(uri: str, message: str, hint: str):
    with pytest.raises(DataError) as failed:
        find_files([SourceConfig(path=uri)])
    assert message in failed.value.message
    assert hint in failed.value.hint


class Web(http.server.BaseHTTPRequestHandler):
    """Serves CONTENTS: below /parts in ranges, below /403 not at all, else only whole.

    Below /whole it does not say so, below /refused it does; below /unsized no size is told.
    """

    protocol_version = "HTTP/1.1"
    requested: list[str]

    def do_GET(self) -> None:
        folder, _, name = self.path.partition("?")[0].strip("/").partition("/")
        if folder == "403" or name not in CONTENTS:
            self.send_error(403 if folder == "403" else 404)
            return
        data = CONTENTS[name]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and folder == "parts":
            start, end = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
            data = data[start:end]
        else:
            self.send_response(200)
        if folder == "refused":
            self.send_header("Accept-Ranges", "none")
        if folder == "unsized":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{name}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Keep the test's output free of requests."""


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("folder", ["parts", "whole", "refused", "unsized"])
def test_a_file_of_the_web_is_read_in_ranges_or_in_one_go(folder: str, name: str, web: str):
    uri = f"{web}/{folder}/{name}?version=1"
    assert read(uri) == ROWS
    divided = folder == "parts" and name in ("a.jsonl", "lines.json", "a.parquet")
    assert (len(ranges_of(uri)) > 2) == divided
    assert find_files([SourceConfig(path=uri)])[0].name == name


@pytest.mark.parametrize(
    ("path", "message", "hint"),
    [
        ("/parts/none.jsonl", "/parts/none.jsonl: 404, 'Not Found'", "check the address"),
        ("/403/a.jsonl", "/403/a.jsonl: 403, 'Forbidden'", "without a login"),
    ],
)
def test_what_a_web_server_refuses_is_said_in_its_words(
    path: str, message: str, hint: str, web: str
):
    with pytest.raises(DataError) as failed:
        find_files([SourceConfig(path=web + path)])
    assert message in failed.value.message
    assert hint in failed.value.hint


def test_a_server_that_is_not_there_is_said_so():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}/a.jsonl"
    with pytest.raises(DataError, match="Connect call failed") as failed:
        find_files([SourceConfig(path=uri)])
    assert "check the network" in failed.value.hint


def test_a_dataset_saved_in_a_store_is_read_by_its_split(store: str, tmp_path: Path):
    filesystem, folder = fsspec.filesystem("memory"), f"{store}/saved"
    state = {"_data_files": [{"filename": "data-1.arrow"}, {"filename": "data-0.arrow"}]}
    filesystem.pipe_file(f"{folder}/dataset_dict.json", json.dumps({"splits": ["test"]}).encode())
    filesystem.pipe_file(f"{folder}/test/dataset_info.json", b"{}")
    filesystem.pipe_file(f"{folder}/test/state.json", json.dumps(state).encode())
    for number in range(2):
        filesystem.pipe_file(f"{folder}/test/data-{number}.arrow", CONTENTS["a.arrow"])
    files = find_files([SourceConfig(path=folder, split="test")])
    assert [file.name for file in files] == ["data-1.arrow", "data-0.arrow"]
    with pytest.raises(DataError, match="there is no split 'train'"):
        find_files([SourceConfig(path=folder)])
