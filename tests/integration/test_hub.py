"""A Hugging Face dataset is read from where it lies, by its id, against a small hub of our own."""

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

COMMIT = "c0ffee" * 6 + "c0ff"
FILES = {
    "README.md": b"---\nlicense: mit\n---\n",
    "data/train-00000-of-00002.jsonl": b'{"text": "one"}\n' * 500,
    "data/train-00001-of-00002.jsonl": b'{"text": "two"}\n',
    "data/test-00000-of-00001.jsonl": b'{"text": "three"}\n',
}


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves one dataset with the answers of the hub that a reader asks for."""

    protocol_version = "HTTP/1.1"
    ranges: list[str]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if tree := re.fullmatch(rf"/api/datasets/some/data/tree/{COMMIT}/?(.*)", path):
            folder = f"{tree[1]}/".lstrip("/")
            inside = [name.removeprefix(folder) for name in FILES if name.startswith(folder)]
            heads = dict.fromkeys(name.partition("/")[0] for name in inside)
            self._answer(json.dumps([_described(folder + head) for head in heads]).encode())
        elif re.fullmatch(rf"/api/datasets/some/data(/revision/(main|{COMMIT}))?", path):
            self._answer(json.dumps({"id": "some/data", "sha": COMMIT, "siblings": []}).encode())
        elif file := re.fullmatch(rf"/datasets/some/data/resolve/(?:main|{COMMIT})/(.*)", path):
            self._send_file(file[1])
        else:
            self._missing("Entry" if "/some/data/" in path else "Repo")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send_file(self, name: str) -> None:
        if name not in FILES:
            self._missing("Entry")
            return
        data = FILES[name]
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            self.ranges.append(wanted[0])
            part = data[int(wanted[1]) : int(wanted[2]) + 1]
            last = int(wanted[1]) + len(part) - 1
            self._answer(part, 206, {"Content-Range": f"bytes {wanted[1]}-{last}/{len(data)}"})
        else:
            self._answer(data, headers={"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})

    def _missing(self, what: str) -> None:
        self._answer(b"{}", 404, {"X-Error-Code": f"{what}NotFound"})

    def _answer(self, data: bytes, code: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Keep the test's output free of requests."""


def _described(name: str) -> dict[str, object]:
    if name not in FILES:
        return {"type": "directory", "path": name, "size": 0, "oid": name}
    digest = hashlib.sha1(FILES[name], usedforsecurity=False).hexdigest()
    return {"type": "file", "path": name, "size": len(FILES[name]), "oid": digest}


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.ranges = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


READ = """
import json
from ftray.config.data import SourceConfig
from ftray.data.reading.files import find_files, plan_ranges
from ftray.data.reading.readers import RangeReader
from ftray.errors import DataError

test = {"split": "test", "revision": "main"}
for settings in ({}, test, {"split": "dev"}, {"hub": "some/other"}):
    try:
        files = find_files([SourceConfig.model_validate({"hub": "some/data", **settings})])
    except DataError as error:
        print(json.dumps([error.message, error.hint]))
        continue
    texts = [row.values["text"] for part in plan_ranges(files, 3000) for row in RangeReader(part)]
    print(json.dumps([[file.path for file in files], texts]))
"""


def test_a_dataset_is_read_in_ranges_of_its_pinned_commit_without_a_download(
    hub: str, tmp_path: Path
):
    # the libraries read their environment when they are imported: another process
    home = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", READ], env=os.environ | home, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    train, test, split, unknown = map(json.loads, done.stdout.splitlines())
    root = f"hf://datasets/some/data@{COMMIT}/data"
    assert train[0] == [f"{root}/train-0000{n}-of-00002.jsonl" for n in range(2)]
    assert train[1] == ["one"] * 500 + ["two"]
    assert test == [[f"{root}/test-00000-of-00001.jsonl"], ["three"]]
    assert Hub.ranges[:1] == ["bytes=0-2999"]
    assert [file.name for file in tmp_path.rglob("*.jsonl")] == []
    assert split == ["some/data: there is no split 'dev'", "expected one of: train, test"]
    assert "some/other: Dataset 'some/other' doesn't exist on the Hub" in unknown[0]
    assert "check the id" in unknown[1]
