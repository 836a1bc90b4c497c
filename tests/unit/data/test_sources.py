"""Files, ranges and rows: everything that can be wrong with them is said with its line."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ftray.config.run import DataConfig
from ftray.data.files import find_sources, plan_ranges, scan_sources
from ftray.data.readers import BadRow, Row, read_range
from ftray.data.sources import check_sources, read_rows
from ftray.errors import DataError

GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
WriteLines = Callable[..., str]


def config(**changes: object) -> DataConfig:
    return DataConfig.model_validate({"train": "train.jsonl", **changes})


def read_in_ranges(path: str, range_bytes: int) -> list[Row | BadRow]:
    sources = find_sources([path])
    ranges = plan_ranges(sources, scan_sources(sources, range_bytes))
    return [row for part in ranges for row in read_range(part)]


@pytest.mark.parametrize("range_bytes", [1, 2, 3, 7, 16, 50, 1000])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last_ending", [True, False])
def test_ranges_of_any_size_hold_every_line_once(
    range_bytes: int, ending: bytes, last_ending: bool, tmp_path: Path
):
    lines = [b'{"n": 0}', b"", b'{"n": 2, "long": "' + b"x" * 40 + b'"}', b'{"n": 3}', b"  "]
    lines.append('{"n": 5, "text": "naïve – 四"}'.encode())
    data = b"\xef\xbb\xbf" + ending.join(lines) + (ending if last_ending else b"")
    (tmp_path / "train.jsonl").write_bytes(data)
    rows = read_in_ranges(str(tmp_path / "train.jsonl"), range_bytes)
    assert [(row.line, row.values["n"]) for row in rows] == [(1, 0), (3, 2), (4, 3), (6, 5)]


def test_a_text_file_has_a_row_for_each_line_with_text(tmp_path: Path):
    (tmp_path / "book.txt").write_text("one\n\n  two \n")
    rows = read_in_ranges(str(tmp_path / "book.txt"), 4)
    assert rows == [Row(1, {"text": "one"}), Row(3, {"text": "  two "})]


def test_a_csv_row_is_named_by_the_line_it_starts_on(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b'q,a\nx,"1\n2"\n\ny,3\nz\nw,\xff\n')
    assert read_in_ranges(str(tmp_path / "a.csv"), 4) == [
        Row(2, {"q": "x", "a": "1\n2"}),
        Row(5, {"q": "y", "a": "3"}),
        BadRow(
            6,
            "wrong number of fields (1; the header has 2)",
            'put text with commas or line ends in "quotes"',
        ),
        BadRow(7, "invalid UTF-8 (byte 0xff)", "save the file as UTF-8"),
    ]


def test_parquet_is_split_by_row_groups(tmp_path: Path):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"text": [f"row {n}" for n in range(10)]}), path, row_group_size=3)
    sources = find_sources([str(path)])
    ranges = plan_ranges(sources, scan_sources(sources, 1))
    assert [(part.start, part.end, part.first_line) for part in ranges] == [
        *((0, 1, 1), (1, 2, 4), (2, 3, 7), (3, 4, 10)),
    ]
    rows = [row for part in ranges for row in read_range(part)]
    assert rows == [Row(n + 1, {"text": f"row {n}"}) for n in range(10)]


def test_a_json_file_is_a_list_or_lines(tmp_path: Path):
    (tmp_path / "list.json").write_text(json.dumps([{"n": 1}, {"n": 2}], indent=1))
    (tmp_path / "lines.json").write_text('{"n": 1}\n{"n": 2}\n')
    expected = [Row(1, {"n": 1}), Row(2, {"n": 2})]
    assert read_in_ranges(str(tmp_path / "list.json"), 4) == expected
    assert read_in_ranges(str(tmp_path / "lines.json"), 4) == expected


def test_files_come_from_globs_and_folders_in_the_order_of_their_names(tmp_path: Path):
    for name in ("b.jsonl", "a.csv", "c/d.parquet", ".hidden.jsonl", "_SUCCESS", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    folder = [Path(source.path).name for source in find_sources([str(tmp_path)])]
    assert folder == ["a.csv", "b.jsonl", "d.parquet"]
    globbed = find_sources([str(tmp_path / "**/*.parquet"), str(tmp_path / "*.jsonl")])
    assert [Path(source.path).name for source in globbed] == ["d.parquet", "b.jsonl"]


@pytest.mark.parametrize(
    ("path", "message", "hint"),
    [
        ("trian.jsonl", "trian.jsonl: no such file", "did you mean '{folder}/train.jsonl'?"),
        ("questions.csv", "questions.csv: no such file", "in {folder}: empty.jsonl, train.jsonl"),
        ("nowhere/x.jsonl", "x.jsonl: no such file", "there is no folder {folder}/nowhere"),
        ("*.csv", "*.csv: matches no file", "in {folder}: empty.jsonl, train.jsonl"),
        ("sheet.xlsx", "unknown kind '.xlsx'", "ftray reads .jsonl"),
        ("empty.jsonl", "empty.jsonl: the file is empty", "each row is one training example"),
        ("only", "only: no data files in it (found: notes.md)", "needs .jsonl"),
    ],
)
def test_a_path_that_cannot_be_read_says_why(path: str, message: str, hint: str, tmp_path: Path):
    for name in ("train.jsonl", "sheet.xlsx", "only/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError) as failed:
        find_sources([str(tmp_path / path)])
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
        ({"conversations": []}, "no 'messages'", "data.columns='{messages: conversations}'"),
        ({"x": 1}, "no 'messages' (found: x)", "data.columns={messages: YOUR_COLUMN}"),
        ({}, "no 'messages' (found: no columns)", "YOUR_COLUMN"),
        ({"messages": "hi"}, "'messages' is text, expected a list of messages", ""),
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
        (chat(USER, ANSWER, tools="add"), "'tools' is text, expected a list", ""),
    ],
)
def test_a_bad_line_says_what_was_found_and_what_was_expected(
    line: object, message: str, hint: str, write_lines: WriteLines
):
    path = write_lines(GOOD, b"", line)
    with pytest.raises(DataError) as failed:
        list(read_rows([path], config()))
    assert failed.value.message.startswith("train.jsonl line 3: ")
    assert message in failed.value.message
    assert hint in failed.value.hint


def test_a_list_over_many_lines_is_to_be_named_json(write_lines: WriteLines):
    with pytest.raises(DataError, match="line 1: expected a JSON object") as failed:
        check_sources([write_lines(b"[", b' {"messages": []}', b"]")], config())
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
        check_sources([write_lines(row)], config(format=format_name))
    assert f"train.jsonl line 1: {message}" in failed.value.message


def test_the_check_reads_the_first_rows_of_each_file(write_lines: WriteLines):
    paths = [write_lines(GOOD), write_lines(GOOD, {"text": "a"}, name="other.jsonl")]
    assert len(check_sources(paths[:1], config())) == 1
    with pytest.raises(DataError, match=r"other.jsonl line 2: no 'messages' \(found: text\)"):
        check_sources(paths, config())


def test_where_bad_rows_are_dropped_the_check_wants_one_good_row(write_lines: WriteLines):
    drop = config(on_bad_row="drop")
    assert check_sources([write_lines(b"no", GOOD)], drop)
    with pytest.raises(DataError, match="line 1: invalid JSON"):
        check_sources([write_lines(b"no", b"no")], drop)
    assert list(read_rows([write_lines(b"no", GOOD, {})], drop)) == [GOOD]


def test_a_file_without_rows_is_an_error(write_lines: WriteLines):
    with pytest.raises(DataError, match="no rows in it"):
        check_sources([write_lines(b"", b"  ")], config())


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.json", b"[1,"), ("a.parquet", b"no parquet"), ("a.csv", b"q,a,q\n1,2,3\n")],
)
def test_a_file_that_is_not_its_kind_is_an_error(name: str, data: bytes, tmp_path: Path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=name):
        check_sources([str(tmp_path / name)], config())
