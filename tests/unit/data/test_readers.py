"""Rows of every kind of file, and what is wrong with a line or a file said with its place."""

import csv
import gzip
import io
import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ftray.config.data import SourceConfig
from ftray.data.reading.files import Range, find_files, plan_ranges
from ftray.data.reading.readers import BadRow, RangeReader, Row
from ftray.errors import DataError

ROWS = [{"n": n, "text": f"row {n} – naïve 四\n"} for n in range(500)]


def ranges_of(path: Path | str, range_bytes: int = 2**23) -> list[Range]:
    return plan_ranges(find_files([SourceConfig(path=str(path))]), range_bytes)


def read(path: Path | str, range_bytes: int = 2**23) -> list[Row | BadRow]:
    """Read a file range by range, with lines counted from its beginning."""
    rows: list[Row | BadRow] = []
    before = 0
    for part in ranges_of(path, range_bytes):
        reader = RangeReader(part)
        for row in reader:
            fields = (row.values,) if isinstance(row, Row) else (row.reason, row.hint)
            rows.append(type(row)(before + row.line, *fields))
        before += reader.lines
    return rows


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def as_jsonl(rows: Sequence[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: Sequence[dict[str, object]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["n", "text"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: Sequence[dict[str, object]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=100, write_page_checksum=True)
    return sink.getvalue()


def as_arrow(rows: Sequence[dict[str, object]], new: Callable = pa.ipc.new_stream) -> bytes:
    sink, table = io.BytesIO(), pa.Table.from_pylist(rows)
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    return sink.getvalue()


CONTENTS = {
    "a.jsonl": as_jsonl(ROWS),
    "a.ndjson": as_jsonl(ROWS),
    "lines.json": as_jsonl(ROWS),
    "list.json": json.dumps(ROWS, indent=1).encode(),
    "a.parquet": as_parquet(ROWS),
    "a.csv": as_csv(ROWS),
    "a.txt": as_jsonl(ROWS),
    "stream.arrow": as_arrow(ROWS),
    "file.arrow": as_arrow(ROWS, pa.ipc.new_file),
}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstd,
    ".zstd": lambda data: zstd(data[: len(data) // 2]) + zstd(data[len(data) // 2 :]),
    ".GZ": lambda data: gzip.compress(data[:999]) + gzip.compress(data[999:]) + gzip.compress(b""),
}


@pytest.mark.parametrize("range_bytes", [1000, 2**23])
@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("name", CONTENTS)
def test_every_kind_of_file_is_read_whole_compressed_or_not(
    name: str, packed: str, range_bytes: int, tmp_path: Path
):
    path = tmp_path / (name + packed)
    path.write_bytes(PACKED[packed](CONTENTS[name]))
    rows = read(path, range_bytes)
    values = [row.values for row in rows if isinstance(row, Row)]
    if name == "a.csv":
        values = [{**row, "n": int(row["n"])} for row in values]
        assert [row.line for row in rows] == list(range(2, 1002, 2))  # each text ends a line
    else:
        assert [row.line for row in rows] == list(range(1, 501))
    assert values == (
        [{"text": json.dumps(row, ensure_ascii=False)} for row in ROWS] if name == "a.txt" else ROWS
    )
    divides = not packed and name not in ("a.csv", "list.json")
    assert (len(ranges_of(path, 1000)) > 4) == divides


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
    rows = read(tmp_path / "train.jsonl", range_bytes)
    assert [(row.line, row.values["n"]) for row in rows] == [(1, 0), (3, 2), (4, 3), (6, 5)]
    readers = [RangeReader(part) for part in ranges_of(tmp_path / "train.jsonl", range_bytes)]
    assert [row for reader in readers for row in reader]
    assert sum(reader.lines for reader in readers) == 6


@pytest.mark.parametrize("name", ["long.jsonl", "long.json", "long.csv", "long.jsonl.gz"])
def test_a_line_of_ten_megabytes_is_a_row_like_any_other(name: str, tmp_path: Path):
    long = "0123456789" * 10**6
    data = {
        "long.jsonl": as_jsonl([{"t": long}, {"t": "b"}]),
        "long.json": json.dumps([{"t": long}, {"t": "b"}]).encode(),
        "long.csv": f"t\n{long}\nb\n".encode(),
        "long.jsonl.gz": gzip.compress(as_jsonl([{"t": long}, {"t": "b"}]), 1),
    }
    (tmp_path / name).write_bytes(data[name])
    assert [row.values["t"] for row in read(tmp_path / name, 2**20)] == [long, "b"]


def test_a_text_file_has_a_row_for_each_line_with_text(tmp_path: Path):
    (tmp_path / "book.txt").write_bytes(b"one\n\xc2\xa0\n  two \r\nno\0t\n")
    rows = read(tmp_path / "book.txt", 4)
    assert rows[:2] == [Row(1, {"text": "one"}), Row(3, {"text": "  two "})]
    assert (rows[2].line, rows[2].reason) == (4, "NUL character")


def test_a_csv_row_is_named_by_the_line_it_begins_on(tmp_path: Path):
    lines = [
        b"\xef\xbb\xbfq,a",
        b'x,"1',
        b'2"',
        b"",
        b"y,3",
        b"z",
        b"w,\xff",
        b'"n\0",5',
        b'v,"6 ""7"""',
    ]
    (tmp_path / "a.csv").write_bytes(b"\r\n".join(lines))
    rows = read(tmp_path / "a.csv")
    assert [row for row in rows if isinstance(row, Row)] == [
        Row(2, {"q": "x", "a": "1\r\n2"}),
        Row(5, {"q": "y", "a": "3"}),
        Row(9, {"q": "v", "a": '6 "7"'}),
    ]
    assert [(row.line, row.reason) for row in rows if isinstance(row, BadRow)] == [
        (6, "wrong number of fields (1; the header has 2)"),
        (7, "invalid UTF-8 (byte 0xff)"),
        (8, "NUL character"),
    ]


def test_a_quote_that_is_never_closed_spoils_its_own_line_only(tmp_path: Path):
    lines = ["q,a", '1,"one', "2,two", '3,"three"', "4,four", '5,"five" more', '6,"', "7,seven"]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    rows = read(tmp_path / "a.csv")
    assert [row.values["q"] for row in rows if isinstance(row, Row)] == ["2", "3", "4", "7"]
    assert [row.line for row in rows if isinstance(row, BadRow)] == [2, 6, 7]
    assert all(row.reason.startswith("invalid CSV: ") for row in rows if isinstance(row, BadRow))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": \xe9}', "invalid UTF-8 (byte 0xe9 at 6)"),
        (b"{'a': 1}", "invalid JSON: Expecting property name enclosed in double quotes"),
        (b'{"a": 1', "invalid JSON: Expecting ',' delimiter"),
        (b"[" * 100_000, "invalid JSON: nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "invalid JSON: Exceeds the limit"),
        (b'{"a": "\\ud83d"}', "half a character"),
        (b'{"a": {"\\uD83D": 1}}', "half a character"),
        (b'{"a": ["\\u0000"]}', "NUL character"),
        (b'{"a": "\0"}', "NUL character"),
        (b"\0" * 50, "NUL character"),
        (b"[1]", "expected a JSON object (found: a list)"),
        (b"null", "expected a JSON object (found: null)"),
        (b'{"a": 1, "b": 2, "a": 3}', "a key comes twice: 'a'"),
        (b'{"m": [{"role": "x", "role": "y"}]}', "a key comes twice: 'role'"),
        ('{"a": 1}'.encode("utf-16-le"), "NUL character"),
    ],
)
def test_a_line_that_is_no_row_says_why(line: bytes, reason: str, tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n\n' + line + b'\n{"a": 2}\n')
    rows = read(tmp_path / "a.jsonl")
    assert [row.line for row in rows] == [1, 3, 4]
    assert isinstance(rows[1], BadRow)
    assert rows[1].reason.startswith(reason)


@pytest.mark.parametrize(
    "line", [b'{"a": NaN, "b": -Infinity}', b'{"a": "\\ud83d\\ude00"}', b'{"a": "\\\\u0000"}']
)
def test_odd_but_valid_lines_are_rows(line: bytes, tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(line)
    assert isinstance(read(tmp_path / "a.jsonl")[0], Row)


def test_bad_elements_of_a_list_are_named_by_their_number(tmp_path: Path):
    elements = [
        b'{"a": 1}',
        b'{"a": 1, "a": 2}',
        b"5",
        b'{"t": "\\u0000"}',
        b'{"t": "\xff"}',
        b"{}",
    ]
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf [" + b" ,\n".join(elements) + b"]\n")
    rows = read(tmp_path / "a.json")
    assert [row.line for row in rows if isinstance(row, BadRow)] == [2, 3, 4, 5]
    assert [row for row in rows if isinstance(row, Row)] == [Row(1, {"a": 1}), Row(6, {})]


def test_table_values_that_are_no_text_are_named_by_their_row(tmp_path: Path):
    texts = pa.array([b"good", b"\xff", b"nu\0l", b"fine"], pa.binary())
    column = pa.Array.from_buffers(pa.utf8(), 4, texts.buffers())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet")
    assert [row.line for row in rows if isinstance(row, Row)] == [1, 4]
    reasons = [row.reason for row in rows if isinstance(row, BadRow)]
    assert reasons == ["invalid UTF-8 (byte 0xff)", "NUL character"]


PARQUET, ARROW = as_parquet(ROWS), as_arrow(ROWS)
LIST = json.dumps(ROWS).encode()
DAMAGED = {
    "cut.parquet": (PARQUET[:-9], "not readable as Parquet"),
    "other.parquet": (b"no parquet" * 9, "not readable as Parquet"),
    "page.parquet": (PARQUET[:200] + b"\0" * 9 + PARQUET[209:], "not readable as Parquet"),
    "cut.arrow": (ARROW[: len(ARROW) // 2], "not readable as Arrow"),
    "end.arrow": (ARROW[:-8], "not readable as Arrow: it ends without Arrow's end mark"),
    "end.arrow.gz": (gzip.compress(ARROW[:-8]), "ends without Arrow's end mark"),
    "cut.arrow.zst": (zstd(ARROW[:-99]), "not readable as Arrow"),
    "cut.arrow.gz": (gzip.compress(ARROW)[:-9], "the gzip data is broken or cut off"),
    "other.arrow": (b"no arrow" * 9, "not readable as Arrow"),
    "cut.json": (LIST[:-9], "row 500: invalid JSON"),
    "open.json": (LIST[:-1], "row 500: invalid JSON: a ',' or ']' is missing"),
    "more.json": (LIST + b"[]", "row 500: invalid JSON: '[' follows the end of the list"),
    "quote.json": (LIST.replace(b"row 7", b'row"7'), "row 8: invalid JSON: Expecting ','"),
    "cut.jsonl.gz": (gzip.compress(as_jsonl(ROWS))[:-4], "the gzip data is broken or cut off"),
    "cut.csv.zst": (zstd(as_csv(ROWS))[:-4], "the zstd data is broken or cut off"),
    "member.txt.gz": (gzip.compress(b"a\n") * 2 + b"\x1f\x8b", "gzip data is broken or cut off"),
    "plain.jsonl.gz": (as_jsonl(ROWS), "the gzip data is broken or cut off"),
    "cut.parquet.gz": (gzip.compress(PARQUET)[:-4], "the gzip data is broken or cut off"),
    "wide.jsonl": ('{"a": 1}\n'.encode("utf-16"), "it is UTF-16, not UTF-8"),
    "wide.csv": ("a,b\n1,2\n".encode("utf-16"), "it is UTF-16, not UTF-8"),
    "twice.csv": (b"q,a,q\n1,2,3\n", "the header has 'q' twice"),
    "semicolons.csv": (b"q;a\n1;2\n", "its header has ';' between the names"),
    "tabs.csv": (b"q\ta\n1\t2\n", "its header has '\\t' between the names"),
    "open.csv": (b'q,"a\n1,2\n', "line 1: not CSV"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_an_error_and_never_just_shorter(name: str, tmp_path: Path):
    data, reason = DAMAGED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as failed:
        read(tmp_path / name, 1000)
    assert name in failed.value.message
    assert reason in failed.value.message


def test_a_file_that_changes_before_its_range_is_read_is_an_error(tmp_path: Path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(as_jsonl(ROWS))
    first, last, *_ = ranges_of(path, 20_000)
    os.utime(path, ns=(1, 1))
    for part in (first, last):
        with pytest.raises(DataError, match=r"train.jsonl: changed while it was read"):
            list(RangeReader(part))


@pytest.mark.parametrize("name", ["a.jsonl", "list.json", "a.csv", "a.parquet", "stream.arrow"])
def test_a_file_that_shrinks_or_grows_under_the_reader_is_an_error(name: str, tmp_path: Path):
    for data in (CONTENTS[name][:-30], CONTENTS[name] + b"\n"):
        (tmp_path / name).write_bytes(CONTENTS[name])
        rows = iter(RangeReader(ranges_of(tmp_path / name)[0]))
        next(rows)
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match="changed while it was read"):
            list(rows)


def test_a_file_that_this_node_does_not_see_is_an_error(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(ROWS))
    [part] = ranges_of(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(DataError, match=r"a.jsonl: No such file") as failed:
        list(RangeReader(part))
    assert "every node" in failed.value.hint


SPOILED: list[Callable[[bytes], bytes]] = [
    lambda line: line[: len(line) // 2],
    lambda line: line.replace(b'"', b"'"),
    lambda line: line.replace(b"text", b"te\0xt"),
    lambda line: line.replace(b"row", b"\\u0000"),
    lambda line: line.replace(b"row", b"\xff"),
    lambda line: line.replace(b"row", b"\\ud800"),
    lambda line: line[:-1] + b', "n": 1}',
    lambda line: b"[" + line + b"]",
    lambda line: line + line,
    lambda line: line.decode().encode("utf-16-le").replace(b"\n", b""),
]


def check_that_exactly_the_spoiled_lines_are_bad(count: int, seed: int, folder: Path) -> None:
    """Break ten ways at random places, amid blank lines and lines of all lengths."""
    draw = random.Random(seed)
    spoiled = draw.sample(range(count), max(10, count // 100))
    ways = {line: SPOILED[order % len(SPOILED)] for order, line in enumerate(spoiled)}
    lines = []
    for number in range(count):
        row = {"n": number, "text": f"row {'x' * draw.choice((0, 5, 60, 900))} é"}
        lines.append(json.dumps(row, ensure_ascii=False).encode())
        if number in ways:
            lines[-1] = ways[number](lines[-1])
        elif draw.random() < 0.05:
            lines[-1] = b""
    ending = draw.choice([b"\n", b"\r\n"])
    data = ending.join(lines)
    (folder / "fuzz.jsonl").write_bytes(data)
    (folder / "fuzz.jsonl.gz").write_bytes(gzip.compress(data, 1))
    for name in ("fuzz.jsonl", "fuzz.jsonl.gz"):
        rows = read(folder / name, draw.randrange(1000, 100_000))
        assert sorted(row.line - 1 for row in rows if isinstance(row, BadRow)) == sorted(ways)
        good = {row.line - 1: row.values["n"] for row in rows if isinstance(row, Row)}
        assert good == {n: n for n in range(count) if lines[n] and n not in ways}


@pytest.mark.parametrize("seed", range(3))
def test_every_spoiled_line_is_found_and_no_other(seed: int, tmp_path: Path):
    check_that_exactly_the_spoiled_lines_are_bad(3000, seed, tmp_path)


@pytest.mark.full
def test_every_spoiled_line_of_many_is_found_and_no_other(tmp_path: Path):
    check_that_exactly_the_spoiled_lines_are_bad(100_000, 7, tmp_path)


def test_a_file_that_holds_another_kind_than_its_suffix_says_is_named(tmp_path: Path):
    (tmp_path / "train.jsonl").write_bytes(b"\x1f\x8b\x08\0 and so on")
    [part] = plan_ranges(find_files([SourceConfig(path=str(tmp_path / "train.jsonl"))]))
    with pytest.raises(DataError, match="it holds gzip, not jsonl"):
        list(RangeReader(part))
