"""Shards and their records: what is read is what was made, and bad rows are counted."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from ftray.config.run import DataConfig
from ftray.data.chat import Renderer
from ftray.data.files import find_sources, plan_ranges, scan_sources
from ftray.data.manifest import (
    Manifest,
    SourceRecord,
    TokenSet,
    find_token_set,
    publish_manifest,
    published_shards,
    token_digest,
)
from ftray.data.shards import Rows
from ftray.data.tokenization import make_shard
from ftray.errors import DataError

WriteLines = Callable[..., str]


def config(**changes: object) -> DataConfig:
    return DataConfig.model_validate({"train": "train.jsonl", "format": "text", **changes})


def make(path: str, folder: Path, renderer: Renderer, range_bytes: int = 64) -> TokenSet:
    """What the pipeline does, range by range."""
    [source], [scan] = (found := find_sources([path])), scan_sources(found, range_bytes)
    shards = [make_shard(part, renderer, str(folder)) for part in plan_ranges([source], [scan])]
    record = SourceRecord(Path(path).name, source.kind, source.size, scan.sha256)
    return publish_manifest(str(folder), Manifest("digest", "template", [record], shards))


def test_rows_are_read_back_as_they_were_rendered(
    plain_tokenizer: PreTrainedTokenizerFast, write_lines: WriteLines, tmp_path: Path
):
    texts = [{"text": f"what is {n} " * (n % 7 + 1)} for n in range(40)]
    renderer = Renderer(plain_tokenizer, config())
    made = make(write_lines(*texts), tmp_path / "tokens", renderer, 200)
    assert len(published_shards(made.folder)) > 3
    rows = pickle.loads(pickle.dumps(Rows(made, tmp_path)))
    expected = [renderer.render(text) for text in texts]
    assert [rows.ids(n).tolist() for n in range(len(rows))] == [row.ids for row in expected]
    assert [rows.trained(n).tolist() for n in range(len(rows))] == [row.trained for row in expected]
    assert rows.lengths.tolist() == [len(row.ids) for row in expected]
    assert set(rows.first_label.tolist()) == {1}
    assert (made.rows, made.tokens) == (40, rows.lengths.sum())
    assert made.label_tokens == made.tokens - 40
    assert [rows.place(n) for n in (0, 39)] == ["train.jsonl line 1", "train.jsonl line 40"]
    assert not rows.ids(3).flags.owndata


def test_dropped_rows_are_counted_by_reason_and_the_first_are_named(
    plain_tokenizer: PreTrainedTokenizerFast, write_lines: WriteLines, tmp_path: Path
):
    lines = [{"text": "a"}, b"no", {"text": 1}, *[{"other": n} for n in range(150)], {"text": "b"}]
    renderer = Renderer(plain_tokenizer, config(on_bad_row="drop"))
    made = make(write_lines(*lines), tmp_path / "tokens", renderer)
    report = json.loads((tmp_path / "tokens" / "report.json").read_text())
    assert (made.rows, made.bad_rows) == (2, 152)
    assert report["reasons"] == {
        "no 'text'": 150,
        "invalid JSON": 1,
        "'text' is a number, expected text": 1,
    }
    assert len(report["first"]) == 100
    assert report["first"][1:3] == [
        "train.jsonl line 3: 'text' is a number, expected text",
        "train.jsonl line 4: no 'text' (found: other)",
    ]


def test_a_bad_row_fails_its_range_with_its_line(
    plain_tokenizer: PreTrainedTokenizerFast, write_lines: WriteLines, tmp_path: Path
):
    lines = [*[{"text": "a" * 20}] * 30, {"x": 1}, {"text": "b"}]
    with pytest.raises(DataError, match=r"train.jsonl line 31: no 'text' \(found: x\)"):
        make(write_lines(*lines), tmp_path / "tokens", Renderer(plain_tokenizer, config()))
    assert find_token_set(str(tmp_path / "tokens")) is None


def test_a_second_maker_changes_nothing(
    plain_tokenizer: PreTrainedTokenizerFast, write_lines: WriteLines, tmp_path: Path
):
    path, renderer = write_lines(*[{"text": "a"}] * 20), Renderer(plain_tokenizer, config())
    first = make(path, tmp_path / "tokens", renderer)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "tokens").glob("shard-*")}
    assert make(path, tmp_path / "tokens", renderer) == first
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_a_damaged_shard_is_noticed(
    plain_tokenizer: PreTrainedTokenizerFast, write_lines: WriteLines, tmp_path: Path
):
    path, renderer = write_lines({"text": "a"}), Renderer(plain_tokenizer, config())
    made = make(path, tmp_path / "tokens", renderer)
    shard = tmp_path / "tokens" / "shard-000000.arrow"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match="missing or damaged"):
        Rows(made, tmp_path).ids(0)


def test_token_sets_live_behind_a_uri_too(
    plain_tokenizer: PreTrainedTokenizerFast, write_lines: WriteLines, tmp_path: Path
):
    renderer = Renderer(plain_tokenizer, config())
    sources = find_sources([write_lines({"text": "what"}, {"text": "is"})])
    scans = scan_sources(sources)
    shards = [make_shard(part, renderer, "memory://t/1") for part in plan_ranges(sources, scans)]
    record = SourceRecord("train.jsonl", "jsonl", sources[0].size, scans[0].sha256)
    publish_manifest("memory://t/1", Manifest("digest", "template", [record], shards))
    made = find_token_set("memory://t/1")
    assert made is not None
    assert Rows(made, tmp_path / "cache").ids(1).tolist() == renderer.render({"text": "is"}).ids


def test_the_digest_is_of_what_makes_the_tokens_and_nothing_else(
    write_lines: WriteLines, tmp_path: Path
):
    def digest(path: str, rendering: str = "r", **changes: object) -> str:
        sources = find_sources([path])
        return token_digest(sources, scan_sources(sources), rendering, config(**changes))

    path = write_lines({"text": "a"})
    same = [
        digest(write_lines({"text": "a"}, name="renamed.jsonl")),
        digest(path, max_length=64, packing=False),
    ]
    others = [
        digest(write_lines({"text": "b"}, name="other.jsonl")),
        digest(path, rendering="other"),
        digest(path, on_bad_row="drop"),
        digest(path, columns={"text": "content"}),
        digest(path, format="messages"),
    ]
    assert set(same) == {digest(path)}
    assert len({digest(path), *others}) == 6


def test_lengths_of_an_empty_shard_between_others(
    plain_tokenizer: PreTrainedTokenizerFast, write_lines: WriteLines, tmp_path: Path
):
    """A line longer than a range leaves ranges behind it without any."""
    path = write_lines({"text": "a"}, {"text": "what is " * 40}, {"text": "b"})
    made = make(path, tmp_path / "tokens", Renderer(plain_tokenizer, config()))
    shards = published_shards(made.folder)
    assert 0 in {shard.rows for shard in shards.values()}
    rows = Rows(made, tmp_path)
    assert np.argmax(rows.lengths) == 1
    assert [rows.place(n).rpartition(" ")[2] for n in range(3)] == ["1", "2", "3"]
