"""Shards and their records: what is read is what was made, and bad rows are counted."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ftray.config.data import DataConfig, sources_of
from ftray.data.rendering.renderer import load_renderer
from ftray.data.tokens.cache import ShardCache
from ftray.data.tokens.demand import Follower, tell
from ftray.data.tokens.manifest import TokenSet, find_token_set, published_ranges
from ftray.data.tokens.pipeline import Job, make_all, plan_tokens
from ftray.data.tokens.rows import Rows
from ftray.errors import DataError

WriteLines = Callable[..., str]


@pytest.fixture
def plan(tokenizer_folder: Path, tmp_path: Path) -> Callable[..., Job]:
    def plan_of(*paths: str, root: str = "root", range_bytes: int = 200, **changes: object) -> Job:
        data = DataConfig.model_validate({"train": list(paths), "format": "text", **changes})
        place = root if "://" in root else str(tmp_path / root)
        sources = sources_of(data.train)
        return plan_tokens(sources, data, tokenizer_folder, place, range_bytes=range_bytes)

    return plan_of


def rows_of(made: TokenSet, tmp_path: Path) -> Rows:
    return Rows(made.folder, ShardCache(tmp_path / "cache", 10**9))


def test_rows_are_read_back_as_they_were_rendered(
    plan: Callable[..., Job], tokenizer_folder: Path, write_lines: WriteLines, tmp_path: Path
):
    texts = [{"text": f"what is {n} " * (n % 7 + 1)} for n in range(40)]
    job = plan(write_lines(*texts))
    made = make_all(job)
    assert len(published_ranges(made.folder)) > 3
    rows = rows_of(made, tmp_path)
    config = DataConfig(train="train.jsonl", format="text")
    renderer = load_renderer(tokenizer_folder, config, trust_remote_code=False)
    expected = [renderer.render(text, job.recipe.forms[0])[0] for text in texts]
    keys = rows.columns.key
    assert [rows.ids(key).tolist() for key in keys] == [list(row.ids) for row in expected]
    assert [rows.trained(key).tobytes() for key in keys] == [row.trained for row in expected]
    assert rows.columns.length.tolist() == [len(row.ids) for row in expected]
    assert set(rows.columns.first_label.tolist()) == {1}
    assert (made.rows, made.tokens) == (40, rows.columns.length.sum())
    assert made.label_tokens == made.tokens - 40 == rows.columns.labels.sum()
    places = [rows.place(key) for key in keys]
    assert places == [f"train.jsonl line {line}" for line in range(1, 41)]
    assert not rows.ids(keys[3]).flags.owndata


def test_a_range_becomes_several_shards_with_the_same_rows(
    plan: Callable[..., Job], write_lines: WriteLines, tmp_path: Path
):
    path = write_lines(*[{"text": f"what is {n} plus two"} for n in range(60)])
    whole = plan(path, range_bytes=10**6)
    parts = plan(path, root="parts", range_bytes=10**6)
    parts = replace(parts, recipe=replace(parts.recipe, shard_tokens=100))
    first, second = (rows_of(make_all(job), tmp_path) for job in (whole, parts))
    [shards] = published_ranges(parts.folder).values()
    assert len(shards) > 4
    assert [shard.is_last for shard in shards] == [False] * (len(shards) - 1) + [True]
    assert sum(shard.lines for shard in shards) == 60
    for one, other in zip(first.columns.key, second.columns.key, strict=True):
        assert first.ids(one).tolist() == second.ids(other).tolist()
        assert first.place(one) == second.place(other)
    assert first.columns.digest.tolist() == second.columns.digest.tolist()


def test_dropped_rows_are_counted_by_reason_and_the_first_are_named(
    plan: Callable[..., Job], write_lines: WriteLines
):
    lines = [{"text": "a"}, b"no", {"text": 1}, *[{"other": n} for n in range(150)], {"text": "b"}]
    made = make_all(plan(write_lines(*lines), on_bad_row="drop"))
    report = json.loads((Path(made.folder) / "report.json").read_text())
    assert (made.rows, made.bad_rows) == (2, 152)
    assert report["reasons"] == {
        "no 'text'": 150,
        "invalid JSON": 1,
        "'text' is a number, expected text": 1,
    }
    assert len(report["first"]) == 100
    assert [(bad["place"], bad["reason"]) for bad in report["first"][1:3]] == [
        ("train.jsonl line 3", "'text' is a number, expected text"),
        ("train.jsonl line 4", "no 'text' (found: other)"),
    ]


def test_a_bad_row_ends_it_with_its_line_whoever_made_the_shards(
    plan: Callable[..., Job], write_lines: WriteLines
):
    path = write_lines(*[{"text": "a" * 20}] * 30, {"x": 1}, {"text": "b"})
    message = r"train.jsonl line 31: no 'text' \(found: x\)"
    job = plan(path)
    with pytest.raises(DataError, match=message):
        make_all(job)
    assert find_token_set(job.folder) is None
    dropping = plan(path, on_bad_row="drop")
    assert dropping.folder == job.folder
    assert make_all(dropping).bad_rows == 1
    with pytest.raises(DataError, match=message):
        make_all(job)


def test_a_second_maker_changes_nothing(plan: Callable[..., Job], write_lines: WriteLines):
    job = plan(write_lines(*[{"text": "a"}] * 20))
    first = make_all(job)
    folder = Path(first.folder)
    before = {file: file.stat().st_mtime_ns for file in folder.glob("shard-*")}
    (folder / "manifest.json").unlink()
    assert make_all(job) == first
    assert before == {file: file.stat().st_mtime_ns for file in before}


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-900] + b"x" * 900])
def test_a_damaged_shard_is_noticed(
    damage: Callable[[bytes], bytes],
    plan: Callable[..., Job],
    write_lines: WriteLines,
    tmp_path: Path,
):
    made = make_all(plan(write_lines({"text": "a"})))
    shard = Path(made.folder) / "shard-000000.arrow"
    shard.write_bytes(damage(shard.read_bytes()))
    rows = rows_of(made, tmp_path)
    with pytest.raises(DataError, match="missing or damaged"):
        rows.ids(rows.columns.key[0])


def test_token_sets_live_behind_a_uri_too(
    plan: Callable[..., Job], write_lines: WriteLines, tmp_path: Path
):
    path = write_lines({"text": "what"}, {"text": "is"})
    local, remote = (make_all(plan(path, root=root)) for root in ("root", "memory://tokens"))
    expected, rows = rows_of(local, tmp_path), rows_of(remote, tmp_path)
    for key in rows.columns.key:
        assert rows.ids(key).tolist() == expected.ids(key).tolist()
    assert len(list((tmp_path / "cache").rglob("*.arrow"))) == 2


def test_copies_of_remote_shards_are_bounded(
    plan: Callable[..., Job], write_lines: WriteLines, tmp_path: Path
):
    path = write_lines(*[{"text": f"what is {n}"} for n in range(60)])
    made = make_all(plan(path, root="memory://bounded", range_bytes=100))
    cache = ShardCache(tmp_path / "cache", 12_000)
    rows = Rows(made.folder, cache)
    for key in rows.columns.key:
        assert len(rows.ids(key))
        for file in cache.folder.rglob("*.arrow"):
            os.utime(file, (0, file.stat().st_mtime - 60))  # time goes by
    assert sum(file.stat().st_size for file in cache.folder.rglob("*.arrow")) < 14_000


def test_few_shards_stay_open_if_asked(
    plan: Callable[..., Job], write_lines: WriteLines, tmp_path: Path
):
    """Deleted ones would take their room on disk until the end."""
    made = make_all(plan(write_lines(*[{"text": f"what is {n}"} for n in range(60)])))
    rows = Rows(made.folder, ShardCache(tmp_path / "cache", 10**9), most_open=2)
    read = [rows.ids(key).tolist() for key in rows.columns.key]
    maps = Path("/proc/self/maps").read_text().splitlines()
    names = {line.split()[-1] for line in maps if f"{made.folder}/shard-" in line}
    assert len([name for name in names if not name.endswith(".rows.arrow")]) == 2
    assert [rows.ids(key).tolist() for key in rows.columns.key] == read


def test_a_line_is_named_without_the_shards_behind_it(
    plan: Callable[..., Job], write_lines: WriteLines, tmp_path: Path
):
    made = make_all(plan(write_lines(*[{"text": f"what is {n}"} for n in range(60)])))
    key = rows_of(made, tmp_path).columns.key[11]
    for name in ("manifest.json", "shard-000006.json"):
        (Path(made.folder) / name).unlink()
    error = str(tmp_path / "error.json")
    tell(error, DataError("it is not made yet"))
    rows = Rows(made.folder, ShardCache(tmp_path / "cache", 10**9), Follower(error, None))
    assert rows.place(key) == "train.jsonl line 12"
    with pytest.raises(DataError, match="it is not made yet"):
        rows.of(0)


def test_the_digest_is_of_what_makes_the_tokens_and_nothing_else(
    plan: Callable[..., Job], write_lines: WriteLines
):
    def digest(path: str, **changes: object) -> str:
        return plan(path, **changes).plan.digest

    path = write_lines({"text": "a"})
    same = [
        digest(write_lines({"text": "a"}, name="renamed.jsonl")),
        digest(path, max_length=64, packing=False, overflow="drop", on_bad_row="drop"),
        digest(path, format="auto", shards_ahead=7),
    ]
    content = write_lines({"content": "a"}, name="content.jsonl")
    others = [
        digest(write_lines({"text": "b"}, name="other.jsonl")),
        digest(path, reasoning="mask"),
        digest(content, columns={"text": "content"}),
        digest(path, range_bytes=3),
    ]
    assert set(same) == {digest(path)}
    assert len({digest(path), *others}) == 5


def test_an_empty_shard_between_others_has_no_rows(
    plan: Callable[..., Job], write_lines: WriteLines, tmp_path: Path
):
    """A line longer than a range leaves ranges behind it without any."""
    path = write_lines({"text": "a"}, {"text": "what is " * 40}, {"text": "b"})
    made = make_all(plan(path, range_bytes=64))
    shards = [shard for shards in published_ranges(made.folder).values() for shard in shards]
    assert 0 in {shard.rows for shard in shards}
    rows = rows_of(made, tmp_path)
    assert np.argmax(rows.columns.length) == 1
    lines = [rows.place(key).rpartition(" ")[2] for key in rows.columns.key]
    assert lines == ["1", "2", "3"]
