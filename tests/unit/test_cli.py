import json
import os
import signal
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftray import __version__, registry, runs
from ftray.cli import main
from ftray.config.run import load_run
from ftray.verbs import add_verbs

RUN = "name: a\ndata: {train: x.jsonl}\ntrain: {max_steps: 10, global_batch_size: 4}\n"


@pytest.fixture
def run_file(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(RUN, encoding="utf-8")
    return str(path)


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A storage root with one run and two versions of an adapter."""
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    root = str(tmp_path / "root")
    draft = registry.AdapterRecord(
        name="bot",
        kind="adapter",
        base=registry.BaseModel(name="base", revision=None, fingerprint="f"),
        method="lora",
        rank=8,
        tokenizer_digest="t",
        template_digest="c",
        metrics={"eval_loss": 1.25},
    )
    registry.publish(root, folder, draft)
    registry.publish(root, folder, draft)
    (tmp_path / "run.yaml").write_text(RUN, encoding="utf-8")
    runs.open_run(root, load_run(tmp_path / "run.yaml"))
    return root


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    assert main(arguments) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err


def verbs(parser: ArgumentParser, words: str = "ftray") -> Iterator[tuple[str, str]]:
    groups = parser._subparsers._group_actions if parser._subparsers else []
    for name, verb in (pair for group in groups for pair in (group.choices or {}).items()):
        below = list(verbs(verb, f"{words} {name}"))
        yield from below or [(f"{words} {name}", verb.format_help())]


def test_every_verb_explains_itself_with_examples():
    parser = ArgumentParser()
    add_verbs(parser)
    helps = dict(verbs(parser))
    assert len(helps) == 35
    for words, text in helps.items():
        lines = text[text.index("examples:") :].splitlines()[1:]
        assert lines
        assert all(line.strip().startswith(words) for line in lines)


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"ftray {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["trian"], "ftray has no command 'trian'", "did you mean 'train'?"),
        (["runs", "lst"], "ftray runs has no command 'lst'", "did you mean 'list'?"),
        (["init", "lroa"], "no preset 'lroa'", "did you mean 'lora'?"),
        (["runs"], "required: COMMAND", "ftray runs --help"),
        (["check"], "required: RUN.yaml", "ftray check --help"),
        (["check", "gone.yaml"], "gone.yaml: No such file", "ftray init lora > run.yaml"),
        (["runs", "list", "a=b"], "unknown arguments: a=b", "ftray runs list --help"),
        (["runs", "list", "--al"], "unknown arguments: --al", "ftray runs list --help"),
        (["data", "preview", "run.yaml", "--rows", "0"], "expected a number from 1", "--help"),
        (["data", "chekc", "run.yaml"], "ftray data has no command 'chekc'", "'check'"),
        (["data", "check", "gone.yaml"], "gone.yaml: No such file", "ftray init lora > run.yaml"),
    ],
)
def test_a_wrong_command_line_is_explained_on_stderr(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str, hint: str
):
    error, _, told = refusal(capsys, *arguments).partition("\nhint: ")
    assert error.startswith("error: ")
    assert message in error
    assert hint in told


@pytest.mark.parametrize("verb", ["preview", "check"])
def test_data_that_is_not_there_is_told_before_a_model_is_fetched(
    capsys: pytest.CaptureFixture[str], run_file: str, verb: str
):
    changes = ("data.train=gone.csv", "model.name=./gone")
    told = refusal(capsys, "data", verb, run_file, *changes, code=3)
    assert "gone.csv: no such file" in told


def test_check_tells_config_batches_memory_and_warnings(
    capsys: pytest.CaptureFixture[str], run_file: str
):
    told = answer(capsys, "check", run_file, "scaling.num_workers=2")
    for text in ("max_length: 2048", "4 packs = 2 workers", "4,884,480 of", "logits", "warning: "):
        assert text in told


def test_overrides_are_taken_before_and_after_options(
    capsys: pytest.CaptureFixture[str], run_file: str
):
    told = json.loads(answer(capsys, "check", run_file, "name=b", "--json", "adapter.rank=8"))
    assert (told["config"]["name"], told["config"]["adapter"]["rank"]) == ("b", 8)


def test_check_loads_neither_torch_nor_ray(run_file: str):
    probe = (
        f"import sys; from ftray.cli import main; code = main(['check', {run_file!r}, '--json'])\n"
        "heavy = {'torch', 'ray', 'transformers', 'peft', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_runs_are_listed_shown_and_deleted(capsys: pytest.CaptureFixture[str], root: str):
    assert "queued" in answer(capsys, "runs", "list", "--storage", root)
    assert "0" in answer(capsys, "runs", "show", "a", "--storage", root)
    shown = json.loads(answer(capsys, "runs", "show", "a", "--storage", root, "--json"))
    assert shown["config"]["train"]["max_steps"] == 10
    answer(capsys, "runs", "delete", "a", "--force", "--storage", root)
    assert "no runs yet" in answer(capsys, "runs", "list", "--storage", root)
    refusal(capsys, "runs", "show", "a", "--storage", root)


def test_adapters_are_listed_promoted_and_deleted(capsys: pytest.CaptureFixture[str], root: str):
    at = ["--storage", root]
    assert "bot@2" in answer(capsys, "adapters", "promote", "bot@2", "champion", *at)
    listed = answer(capsys, "adapters", "list", *at).splitlines()
    assert [line.split()[:3] for line in listed[1:]] == [
        ["bot@1", "lora", "8"],
        ["bot@2", "lora", "8"],
    ]
    assert "champion" in listed[2]
    shown = json.loads(answer(capsys, "adapters", "show", "bot@champion", "--json", *at))
    assert (shown["ref"], shown["version"], shown["metrics"]["eval_loss"]) == ("bot@2", 2, 1.25)
    refusal(capsys, "adapters", "promote", "bot@1", "champion", "--expect", "1", *at, code=6)
    refusal(capsys, "adapters", "delete", "bot@2", *at, code=6)
    assert answer(capsys, "adapters", "delete", "bot@1", *at) == "deleted bot@1\n"
    assert "did you mean" in refusal(capsys, "adapters", "show", "bt", *at, code=6)


def test_an_interrupt_ends_with_code_130(tmp_path: Path):
    run_file = tmp_path / "run.yaml"
    os.mkfifo(run_file)
    command = [sys.executable, "-m", "ftray", "check", str(run_file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        with run_file.open("w"):  # returns when the command has opened it and waits for content
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
        assert process.stderr is not None
        assert process.stderr.read() == "interrupted\n"


def test_a_reader_that_leaves_early_is_no_error():
    command = [sys.executable, "-m", "ftray", "init", "lora"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_reader_that_has_seen_enough_is_no_failure(run_file: str):
    command = [sys.executable, "-m", "ftray", "check", run_file]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait()) == (b"", 0)


def test_a_full_disk_beneath_the_answer_is_told(run_file: str):
    command = [sys.executable, "-m", "ftray", "check", run_file]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, text=True)
    assert done.returncode == 8
    assert done.stderr == "error: the answer cannot be written: No space left on device\n"
