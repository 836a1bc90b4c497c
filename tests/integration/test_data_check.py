"""`ftray data check` from a run file to its page; data this small is made without Ray."""

import json
from pathlib import Path

import pytest
import ray

from ftray.cli import main

WORDS = ["north", "south", "east", "west", "river", "mountain", "city", "bridge", "forest", "lake"]


@pytest.fixture
def run_file(tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run on 60 rows: two equal ones, one broken, one whose prompt is in eval too."""
    monkeypatch.setenv("FTRAY_HOME", str(tmp_path / "home"))
    rows = [
        _row(f"Where is {one} {other}?", f"{other}, {one}.") for one in WORDS for other in WORDS
    ]
    lines = [
        *rows[:40],
        rows[7],
        "{broken",
        *rows[41:58],
        _row("<script>alert(1)</script>?", "No."),
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "eval.jsonl").write_text("\n".join([rows[3], *rows[90:]]))
    run = tmp_path / "run.yaml"
    run.write_text(
        f"name: atlas\nmodel: {{name: {small_model}}}\n"
        "data: {train: train.jsonl, eval: eval.jsonl, max_length: 128}\ntrain: {epochs: 1}\n"
    )
    return str(run)


def test_a_report_is_printed_and_written_and_bad_rows_are_named(
    run_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    was_started = ray.is_initialized()
    page = tmp_path / "data.html"
    assert main(["data", "check", run_file, "--html", str(page)]) == 3
    told = capsys.readouterr().out
    assert "ftray train would refuse this:" in told
    assert "train.jsonl line 42: " in told
    assert "1 equal to an earlier row, 0 like one" in told
    html = page.read_text("utf-8")
    assert "train.jsonl line 42" in html
    assert "<script" not in html
    assert ray.is_initialized() == was_started


def test_a_report_is_json_and_the_tokens_are_reused(
    run_file: str, capsys: pytest.CaptureFixture[str]
):
    drop = "data.on_bad_row=drop"
    assert main(["data", "check", run_file, drop]) == 0
    assert main(["data", "check", run_file, drop, "data.limits.overlap=0.01", "--json"]) == 3
    shown = capsys.readouterr()
    told = json.loads(shown.out[shown.out.index("{") :])
    quality = told["quality"]
    assert (quality["train"]["rows"], quality["train"]["bad"]["count"]) == (59, 1)
    assert (quality["overlap"]["prompts"], quality["shares"]["overlap"]) == (1, 1 / 11)
    assert told["verdict"]["stops"] == [
        "data.limits.overlap: 9.09% found, at most 1.00% allowed",
    ]
    assert Path(told["page"]).parent.parent.name == "tokens"


def test_eval_rows_set_aside_are_reported_as_eval(
    run_file: str, capsys: pytest.CaptureFixture[str]
):
    settings = ["data.eval=null", "data.eval_fraction=0.3", "data.on_bad_row=drop", "--json"]
    assert main(["data", "check", run_file, *settings]) == 0
    quality = json.loads(capsys.readouterr().out)["quality"]
    assert quality["train"]["rows"] + quality["eval"]["rows"] == 59
    assert 0 < quality["eval"]["rows"] < 40
    assert quality["overlap"]["prompts"] == 0


def _row(prompt: str, answer: str) -> str:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns})
