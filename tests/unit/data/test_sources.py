"""Sources to files, and their rows checked: what is wrong is said with its file and line."""

import gzip
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ftray.config.data import DataConfig, SourceConfig
from ftray.data.reading.files import SourceFile, content_ids, find_files, place, plan_ranges
from ftray.data.reading.readers import RangeReader, Row
from ftray.data.sources import check_sources, read_rows
from ftray.errors import DataError

GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
WriteLines = Callable[..., str]


def config(**changes: object) -> DataConfig:
    return DataConfig.model_validate({"train": "train.jsonl", "format": "messages", **changes})


def at(*paths: object, **settings: object) -> list[SourceConfig]:
    return [SourceConfig.model_validate({"path": str(path), **settings}) for path in paths]


def values(files: Iterable[SourceFile]) -> list[dict[str, object]]:
    readers = [RangeReader(part) for part in plan_ranges(list(files), 100)]
    rows = [row for reader in readers for row in reader]
    return [row.values for row in rows if isinstance(row, Row)]


def test_files_come_from_globs_and_folders_in_the_order_of_their_names(tmp_path: Path):
    for name in ("b.jsonl", "a.csv", "c/d.parquet", ".hidden.jsonl", "_SUCCESS", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [file.name for file in find_files(at(tmp_path))] == ["a.csv", "b.jsonl", "d.parquet"]
    globbed = find_files(at(tmp_path / "**/**/*.parquet", f"file://{tmp_path}/*.jsonl"))
    assert [(file.source, file.name) for file in globbed] == [(0, "d.parquet"), (1, "b.jsonl")]


def test_ranges_are_numbered_in_file_order_and_know_their_file(tmp_path: Path):
    for name, lines in (("a/x.jsonl", 30), ("b/x.jsonl", 1)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text('{"n": 1}\n' * lines)
    files = find_files(at(tmp_path / "b/x.jsonl", tmp_path / "a"))
    assert [file.name for file in files] == ["b/x.jsonl", "a/x.jsonl"]  # alike: told by the folder
    ranges = plan_ranges(files, 100)
    assert [(part.number, part.source, part.file) for part in ranges] == [
        *((0, 0, 0), (1, 1, 1), (2, 1, 1), (3, 1, 1)),
    ]
    assert [(part.start, part.end, part.size) for part in ranges[1:]] == [
        *((0, 100, 100), (100, 200, 100), (200, 270, 70)),
    ]
    assert place(ranges[3].name, ranges[3].kind, 7) == "a/x.jsonl line 7"


def test_files_of_one_name_are_told_apart_by_as_much_of_the_path_as_it_takes(tmp_path: Path):
    paths = [tmp_path / name for name in ("a/en/x.jsonl", "b/en/x.jsonl", "b/fr/x.jsonl", "y.csv")]
    for path in paths:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("x")
    names = [file.name for file in find_files(at(*paths))]
    assert names == [str(paths[0]), str(paths[1]), "fr/x.jsonl", "y.csv"]


def test_a_file_is_known_by_its_content_if_it_is_small_else_by_its_stamp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"n": 1}\n')
    os.utime(tmp_path / "b.jsonl", ns=(1, 1))
    one, other = content_ids(find_files(at(tmp_path)))
    assert one == other
    monkeypatch.setattr("ftray.data.reading.files.HASHED_BYTES", 17)
    one, other = content_ids(find_files(at(tmp_path)))
    assert one != other


@pytest.mark.parametrize(
    ("path", "message", "hint"),
    [
        ("trian.jsonl", "trian.jsonl: no such file", "did you mean '{folder}/train.jsonl'?"),
        ("questions.csv", "questions.csv: no such file", "in {folder}: empty.jsonl, train.jsonl"),
        ("nowhere/x.jsonl", "x.jsonl: no such file", "there is no folder {folder}/nowhere"),
        ("*.csv", "*.csv: matches no file", "in {folder}: empty.jsonl, train.jsonl"),
        ("sheet.xlsx", "unknown kind '.xlsx'", "ftray reads .jsonl"),
        ("empty.jsonl", "empty.jsonl: the file is empty", "each row is one training example"),
        ("only", "only: no data files in it (found: notes.md)", "ftray reads .jsonl"),
        ("notes.gz", "unknown kind '.gz'", "ftray reads .jsonl"),
        ("tables/delta", "tables/delta: a Delta table, which ftray does not read", "Parquet"),
        ("tables/x.lance", "a Lance dataset, which ftray does not read", "export its rows"),
        ("tables/ice", "an Iceberg table, which ftray does not read", "deleted rows"),
    ],
)
def test_a_path_that_cannot_be_read_says_why(path: str, message: str, hint: str, tmp_path: Path):
    tables = ("delta/_delta_log/0.json", "x.lance/_versions/1", "ice/metadata/v1.metadata.json")
    files = ("train.jsonl", "sheet.xlsx", "notes.gz", "only/notes.md", "tables/delta/part.parquet")
    for name in (*files, *(f"tables/{name}" for name in tables)):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError) as failed:
        find_files(at(tmp_path / path))
    assert message in failed.value.message
    assert hint.format(folder=tmp_path) in failed.value.hint


def chat(*turns: object, **columns: object) -> dict[str, object]:
    return {"messages": list(turns), **columns}


USER = {"role": "user", "content": "a"}
ANSWER = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        (b'{"messages": \xe9}', "invalid UTF-8 (byte 0xe9 at 13)", "save the file as UTF-8"),
        (b"{'messages': 1}", "invalid JSON: Expecting property name", "one JSON object a line"),
        (b"[" * 100_000, "invalid JSON: nested too deeply", "data.on_bad_row=drop"),
        (b'{"messages": "\\ud83d"}', "half a character", ""),
        (b"[1]", "expected a JSON object (found: a list)", ""),
        (
            {"prompt": "a", "completion": "b"},
            "no 'messages' (found: prompt, completion)",
            "set data.format=prompt_completion",
        ),
        (
            {"question": "a", "answer": "b"},
            "no 'messages' (found: question, answer)",
            "data.format=prompt_completion data.columns='{prompt: question, completion: answer}'",
        ),
        ({"conversations": []}, "no 'messages'", "set data.format=sharegpt"),
        ({"x": 1}, "no 'messages' (found: x)", "data.columns={messages: YOUR_COLUMN}"),
        ({}, "no 'messages' (found: no columns)", "YOUR_COLUMN"),
        ({"messages": "hi"}, "'messages' is text but no JSON", ""),
        ({"messages": []}, "'messages' is empty", ""),
        (chat("hi"), "a message is text (message 1), expected an object", ""),
        (chat({"from": "human"}), "a message has no 'role' (message 1; found: from)", ""),
        (chat({"role": "bot", "content": ""}), "unknown role: 'bot' (message 1)", "the roles are"),
        (chat({"role": "user"}), "a message has no 'content' (message 1; found: role)", ""),
        (chat({"role": "user", "content": 3}), "'content' is a number (message 1)", ""),
        (chat({"role": "user", "content": [{"type": "image"}]}), "a part that is no text", ""),
        (chat(USER), "no assistant turn", "there is nothing to learn from"),
        (chat(USER, ANSWER | {"weight": 0}), "every assistant turn has weight 0", "nothing"),
        (chat(USER, ANSWER | {"weight": 0.5}), "weight is neither 0 nor 1: 0.5 (message 2)", ""),
        (chat(USER, ANSWER | {"content": " "}), "an assistant turn is empty (message 2)", ""),
        (chat(USER, ANSWER | {"function_call": {}}), "'function_call' is not supported", ""),
        (chat(USER, ANSWER, tools="add"), "'tools' is text but no JSON", ""),
    ],
)
def test_a_bad_line_says_what_was_found_and_what_was_expected(
    line: object, message: str, hint: str, write_lines: WriteLines
):
    path = write_lines(GOOD, b"", line)
    with pytest.raises(DataError) as failed:
        list(read_rows(at(path), config()))
    assert failed.value.message.startswith("train.jsonl line 3: ")
    assert message in failed.value.message
    assert hint in failed.value.hint


def test_a_list_over_many_lines_is_to_be_named_json(write_lines: WriteLines):
    with pytest.raises(DataError, match="line 1: expected a JSON object") as failed:
        check_sources(at(write_lines(b"[", b' {"messages": []}', b"]")), config())
    assert "name the file .json" in failed.value.hint


@pytest.mark.parametrize(
    ("format_name", "row", "message"),
    [
        ("prompt_completion", {"prompt": "a"}, "no 'completion' (found: prompt)"),
        ("prompt_completion", {"prompt": 1, "completion": "b"}, "'prompt' is a number"),
        ("prompt_completion", {"prompt": "a", "completion": ""}, "'completion' is empty"),
        ("instruction", {"instruction": "a", "output": None}, "'output' is null, expected text"),
        ("instruction", {"instruction": "a", "input": 3, "output": "b"}, "'input' is a number"),
        ("text", {"text": ["a"]}, "'text' is a list, expected text"),
        ("text", {"content": "a"}, "no 'text' (found: content)"),
    ],
)
def test_a_wrong_column_is_named(
    format_name: str, row: dict[str, object], message: str, write_lines: WriteLines
):
    with pytest.raises(DataError) as failed:
        check_sources(at(write_lines(row)), config(format=format_name))
    assert f"train.jsonl line 1: {message}" in failed.value.message


def test_the_check_reads_the_first_rows_of_each_file(write_lines: WriteLines):
    paths = [write_lines(GOOD), write_lines(GOOD, {"text": "a"}, name="other.jsonl")]
    assert len(check_sources(at(*paths[:1]), config())) == 1
    with pytest.raises(DataError, match=r"other.jsonl line 2: no 'messages' \(found: text\)"):
        check_sources(at(*paths), config())


def test_where_bad_rows_are_dropped_the_check_wants_one_good_row(write_lines: WriteLines):
    drop = config(on_bad_row="drop")
    assert check_sources(at(write_lines(b"no", GOOD)), drop)
    with pytest.raises(DataError, match="line 1: invalid JSON"):
        check_sources(at(write_lines(b"no", b"no")), drop)
    assert [row for row, _ in read_rows(at(write_lines(b"no", GOOD, {})), drop)] == [GOOD]


def test_a_file_without_rows_is_an_error(write_lines: WriteLines):
    with pytest.raises(DataError, match="no rows in it"):
        check_sources(at(write_lines(b"", b"  ")), config())


@pytest.mark.parametrize("name", ["empty_group.parquet", "blank_lines.jsonl"])
def test_a_file_may_begin_with_nothing(name: str, tmp_path: Path):
    table = pa.table({"text": ["a"]})
    with pq.ParquetWriter(tmp_path / "empty_group.parquet", table.schema) as writer:
        writer.write_table(table[:0])
        writer.write_table(table)
    (tmp_path / "blank_lines.jsonl").write_bytes(b"\n" * 70_000 + b'{"text": "a"}\n')
    rows = read_rows(at(tmp_path / name), config(format="text"))
    assert [row for row, _ in rows] == [{"text": "a"}]


def test_each_source_has_its_own_form(write_lines: WriteLines):
    sources = at(write_lines(GOOD)) + at(write_lines({"text": "a"}, name="b.jsonl"), format=None)
    forms = check_sources(sources, config(format="auto"))
    assert [form.format for form in forms] == ["messages", "text"]
    rows = list(read_rows(sources, config(format="auto")))
    assert [(row, form.format) for row, form in rows] == [
        *((GOOD, "messages"), ({"text": "a"}, "text")),
    ]


def test_a_bad_row_behind_the_first_range_is_named_by_its_line_in_the_file(
    write_lines: WriteLines, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ftray.data.sources.plan_ranges", lambda files: plan_ranges(files, 1000))
    path = write_lines(*[GOOD] * 60, b"", {}, GOOD)
    with pytest.raises(DataError, match=r"train.jsonl line 62: no 'messages'"):
        list(read_rows(at(path), config()))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two splits that was saved to disk."""
    folder = tmp_path_factory.mktemp("saved")
    datasets.disable_progress_bars()
    train = datasets.Dataset.from_dict({"text": [f"row {n}" for n in range(5)]})
    whole = datasets.DatasetDict({"train": train, "test": train.select([0])})
    whole.save_to_disk(folder, num_shards={"train": 2, "test": 1})
    return folder


@pytest.mark.parametrize("key", ["path", "hub"])
def test_a_dataset_saved_to_disk_is_read_in_its_own_order(key: str, saved: Path):
    source = SourceConfig.model_validate({key: str(saved)})
    files = find_files([source])
    assert [file.kind for file in files] == ["arrow", "arrow"]
    assert values(files) == [{"text": f"row {n}"} for n in range(5)]
    assert values(find_files([source.model_copy(update={"split": "test"})])) == [{"text": "row 0"}]
    assert values(find_files(at(saved / "test"))) == [{"text": "row 0"}]
    with pytest.raises(DataError, match="there is no split 'tset'") as failed:
        find_files([source.model_copy(update={"split": "tset"})])
    assert failed.value.hint == "did you mean 'test'?"


CARD = """---
configs:
- {config_name: en, data_files: [{split: train, path: en/*.jsonl}, {split: test, path: en.csv}]}
- {config_name: fr, data_files: fr/*.jsonl.gz}
- {config_name: inner, data_files: [{split: train, path: x.json}], field: data}
---
"""


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """A folder laid out like a repository of the hub, with a card that names subsets."""
    (tmp_path / "en").mkdir()
    (tmp_path / "README.md").write_text(CARD.replace("en.csv", "en/test.json"))
    (tmp_path / "x.json").write_text('{"data": [{"text": "a"}]}')
    (tmp_path / "en/a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "en/test.json").write_text('[{"text": "t"}]')
    (tmp_path / "fr").mkdir()
    (tmp_path / "fr/b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "b"}\n'))
    return tmp_path


def test_a_hub_dataset_is_read_by_subset_and_split(hub_folder: Path):
    def read(**settings: str) -> list[dict[str, object]]:
        return values(find_files([SourceConfig(hub=str(hub_folder), **settings)]))

    assert read(subset="en") == [{"text": "a"}]
    assert read(subset="en", split="test") == [{"text": "t"}]
    assert read(subset="fr") == [{"text": "b"}]


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({}, "it has several subsets", "set subset: en | fr | inner"),
        ({"subset": "eng"}, "there is no subset 'eng'", "did you mean 'en'?"),
        ({"subset": "fr", "split": "test"}, "there is no split 'test'", "expected one of: train"),
        ({"subset": "inner"}, "its card sets field='data', which ftray does not support", "JSONL"),
        ({"hub": "someone/unknown"}, "someone/unknown: Couldn't reach", "name a folder"),
        ({"hub": "/nowhere/at/all"}, "/nowhere/at/all: Couldn't find any data file", ""),
    ],
)
def test_what_a_hub_dataset_lacks_is_named(
    settings: dict[str, str], message: str, hint: str, hub_folder: Path
):
    with pytest.raises(DataError) as failed:
        find_files([SourceConfig.model_validate({"hub": str(hub_folder), **settings})])
    assert message in failed.value.message
    assert hint in failed.value.hint


def test_a_dataset_of_images_is_refused_by_its_kind(tmp_path: Path):
    (tmp_path / "cat.png").write_bytes(b"x")
    with pytest.raises(DataError, match="a dataset of the kind 'imagefolder'"):
        find_files([SourceConfig(hub=str(tmp_path))])


def test_a_link_to_nothing_and_a_broken_saved_dataset_are_named(tmp_path: Path):
    (tmp_path / "train.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(DataError, match=r"it links to gone\.jsonl, which is not there"):
        find_files([SourceConfig(path=str(tmp_path / "train.jsonl"))])
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "state.json").write_text("{")
    (saved / "dataset_info.json").write_text("{}")
    with pytest.raises(DataError, match=r"state\.json: it does not hold the '_data_files'"):
        find_files([SourceConfig(path=str(saved))])
