"""What `ftray submit` puts into the storage root, on S3."""

import time
from pathlib import Path

from ftray import storage
from ftray.config.data import SourceConfig
from ftray.submit.uploads import Uploads


def test_files_folders_and_globs_are_uploaded_once_under_their_digest(
    bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "in" / "deep" / "b.jsonl.gz").write_bytes(b"anything")
    (tmp_path / "in" / ".hidden").write_text("not data")
    uploads = Uploads(bucket, most_gib=1)

    file, folder, glob = (
        uploads.path(str(tmp_path / name), "data.train") for name in ("in/a.jsonl", "in", "in/*/*")
    )
    assert file == f"{bucket}/uploads/{storage.sha256(tmp_path / 'in/a.jsonl')}/data.jsonl"
    assert [one.path for one in storage.find(folder)] == [
        f"{folder}/{name}" for name in ("_SUCCESS", "a.jsonl", "deep/b.jsonl.gz")
    ]
    assert glob.endswith(".jsonl.gz")  # it met one file
    before = changed(f"{bucket}/uploads")
    time.sleep(1.1)  # S3 tells whole seconds
    assert uploads.path(str(tmp_path / "in"), "data.train") == folder
    after = changed(f"{bucket}/uploads")
    newer = [name for name, when in after.items() if when != before[name]]
    assert newer == [f"{folder.rpartition('/')[2]}/_SUCCESS"]  # when it was last asked for
    away = [SourceConfig(path="s3://elsewhere/x.jsonl"), SourceConfig(hub="org/name")]
    assert uploads.sources(away, "data.train") == away


def changed(folder: str) -> dict[str, float]:
    return {one.name: one.changed for one in storage.contents(folder)}
