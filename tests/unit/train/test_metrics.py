import json
import math
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ftray import runs, storage
from ftray.config.run import RunConfig
from ftray.errors import ConfigError
from ftray.runs import Run
from ftray.train.board import TensorBoard
from ftray.train.metrics import MetricsFile, open_trackers


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(str(tmp_path), "tickets")
    Path(made.folder).mkdir(parents=True)
    return made


def test_a_line_can_be_read_as_soon_as_it_is_written(run: Run) -> None:
    MetricsFile(run, 0).write({"step": 1, "loss": 0.1 + 0.2})
    assert runs.read_metrics(run) == [{"step": 1, "loss": 0.30000000000000004}]


def test_a_restart_drops_the_lines_of_the_steps_that_come_again(run: Run) -> None:
    first = MetricsFile(run, 0)
    for step in (1, 2, 3):
        first.write({"step": step, "loss": float(step)})
    MetricsFile(run, 2).write({"step": 3, "loss": 9.0})
    assert [line["loss"] for line in runs.read_metrics(run)] == [1.0, 2.0, 9.0]


def test_a_restart_drops_a_line_that_was_torn(run: Run) -> None:
    path = Path(run.folder) / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    MetricsFile(run, 1).write({"step": 2, "loss": 2.0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_on_an_object_store_the_file_is_whole_after_closing() -> None:
    run = Run("memory://metrics-test", "tickets")
    file = MetricsFile(run, 0)
    for step in (1, 2, 3):
        file.write({"step": step, "loss": 1.0})
    file.close()
    assert [line["step"] for line in runs.read_metrics(run)] == [1, 2, 3]


@pytest.mark.parametrize("root", ["{folder}", "memory://metrics-flush"])
def test_what_is_no_number_is_null_as_json_knows_it(root: str, tmp_path: Path) -> None:
    run = Run(root.format(folder=tmp_path), "tickets")
    file = MetricsFile(run, 0)
    file.write({"step": 1, "loss": math.nan, "grad_norm": math.inf, "epoch": 0})
    file.flush()
    text = storage.read(storage.join(run.folder, "metrics.jsonl")).decode()
    expected = {"step": 1, "loss": None, "grad_norm": None, "epoch": 0}
    assert json.loads(text, parse_constant=pytest.fail) == expected


def test_on_an_object_store_the_lines_are_there_after_each_flush() -> None:
    run = Run("memory://metrics-flushed", "tickets")
    file = MetricsFile(run, 0)
    for step in (1, 2):
        file.write({"step": step, "loss": 1.0})
        file.flush()  # as before each checkpoint
        assert len(runs.read_metrics(run)) == step


def test_tensorboard_files_reach_an_object_store() -> None:
    run = Run("memory://tensorboard", "tickets")
    board = TensorBoard(run, 0)
    board.write({"step": 1, "loss": 0.5})
    board.flush()
    [name] = storage.names(storage.join(run.folder, "tensorboard"))
    early = storage.read(storage.join(run.folder, "tensorboard", name))
    board.write({"step": 2, "loss": 0.25})
    board.close()
    assert storage.read(storage.join(run.folder, "tensorboard", name)).startswith(early)


def test_tensorboard_writes_event_files_below_the_run(run: Run) -> None:
    board = TensorBoard(run, 0)
    board.write({"step": 1, "loss": 0.5, "mfu": None, "samples": "a prompt"})
    board.close()
    assert list(Path(run.folder, "tensorboard").glob("events.*"))


def test_a_tracker_that_is_not_installed_names_its_extra(run: Run) -> None:
    config = RunConfig.model_validate(
        {"name": "x", "data": {"train": "a"}, "train": {"epochs": 1}, "tracking": ["mlflow"]}
    )
    with pytest.raises(ConfigError, match="mlflow needs the package mlflow") as caught:
        open_trackers(config, run, 0)
    assert "pip install 'ftray[mlflow]'" in caught.value.hint


def test_a_disk_that_takes_no_more_ends_the_curves_and_not_the_training(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    board = TensorBoard(run, 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        for step in range(1000):
            board.write({"step": step, "loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    board.close()
    assert caplog.text.count("its curves end here") == 1


def test_lines_follow_a_torn_one_that_a_full_disk_has_left(run: Run) -> None:
    file = MetricsFile(run, 0)
    file.write({"step": 1, "loss": 1.0})
    with open(f"{run.folder}/metrics.jsonl", "a") as torn:
        torn.write('{"step": 2, "lo')
    file.write({"step": 2, "loss": 0.5})
    file.close()
    assert runs.read_metrics(run) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]


def test_metrics_may_be_flushed_by_another_thread_while_lines_are_written() -> None:
    """What was put last has every line that was written before."""
    run = Run("memory://flushed-beside", "tickets")
    file = MetricsFile(run, 0)
    with ThreadPoolExecutor(4) as pool:
        for step in range(1, 301):
            file.write({"step": step, "loss": 1.0})
            pool.submit(file.flush)
    assert [line["step"] for line in runs.read_metrics(run)] == list(range(1, 301))
