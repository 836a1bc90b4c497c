"""Training goes on while a checkpoint is written, and what is written is the state it was told."""

import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ftray import runs
from ftray.errors import StorageError
from ftray.runs import Run
from ftray.train import checkpoint
from ftray.train.checkpoint import Progress
from ftray.train.parallel import Place
from ftray.train.saver import Saver

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

PLACE = Place(0, 1, torch.device("cpu"))
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"adapter": {"method": "lora", "rank": 4, "dropout": 0.2}},
    "lora, 8-bit moments": {
        "adapter": {"method": "lora", "rank": 64},  # moments of under 4096 numbers stay fp32
        "train.optimizer": "adamw_8bit",
    },
    "full": {"adapter": {"method": "full"}, "train.weight_decay": 0.1},
}

Learning = Callable[[dict[str, Any]], Any]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path), "run")


@pytest.fixture
def saver(run: Run) -> Iterator[Saver]:
    saver = Saver(run, PLACE, attempt=1, keep=2, patience=5.0)
    yield saver
    saver.close()


def save(saver: Saver, made: Any, step: int, flush: Callable[[], None] = lambda: None) -> None:
    progress = Progress(step, {"loss": 1.0}, is_best=False, micro_batch_size=2)
    saver.save(made.trainable, made.optimizer, progress, flush)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_the_state_before_the_steps_taken_meanwhile(
    kind: str, learner: Learning, run: Run, saver: Saver
) -> None:
    never_stopped, trained_on = learner(KINDS[kind]), threading.Event()
    for saved in (1, 3):  # the second copy goes into the memory of the first
        never_stopped.step(saved - 1)
        save(saver, never_stopped, saved, flush=trained_on.wait)
        expected = [never_stopped.step(saved)]
        assert saved not in [record.step for record in runs.checkpoints(run)]
        trained_on.set()
        assert saver.wait() is not None
        trained_on.clear()
    expected.append(never_stopped.step(4))
    record = checkpoint.newest(run, PLACE, 2)
    assert record is not None
    assert record.step == 3
    started_again = learner(KINDS[kind])
    checkpoint.load(run, record, started_again.trainable, started_again.optimizer)
    assert [started_again.step(step) for step in (3, 4)] == expected
    weights = never_stopped.weights()
    for name, values in started_again.weights().items():
        assert torch.equal(values, weights[name]), name


def test_a_save_is_told_once_and_only_when_its_record_is_there(
    learner: Learning, run: Run, saver: Saver
) -> None:
    made, go_on = learner(KINDS["lora"]), threading.Event()
    made.step(0)
    assert saver.wait() is None
    save(saver, made, 1, flush=go_on.wait)
    assert runs.checkpoints(run) == []
    go_on.set()
    saved = saver.wait()
    assert saved is not None
    assert (saved.progress.step, saved.folder) == (1, runs.checkpoint_folder(run, 1, 1))
    assert [record.step for record in runs.checkpoints(run)] == [1]
    assert saver.wait() is None


def test_older_checkpoints_go_only_after_the_new_one_is_there(
    learner: Learning, run: Run, saver: Saver
) -> None:
    made = learner(KINDS["lora"])
    made.step(0)
    for step in (1, 2, 3):
        save(saver, made, step)
        saver.wait()
    assert [record.step for record in runs.checkpoints(run)] == [3, 2]


def test_closing_lets_the_save_under_way_come_to_its_end(learner: Learning, run: Run) -> None:
    made, saver = learner(KINDS["lora"]), Saver(run, PLACE, attempt=1, keep=2)
    made.step(0)
    save(saver, made, 1)
    saver.close()
    assert [record.step for record in runs.checkpoints(run)] == [1]


def on_a_full_disk(run: Run, step: int) -> Path:
    """Make the file of a checkpoint one that takes no byte."""
    file = Path(runs.checkpoint_folder(run, step, 1)) / "__0_0.distcp"
    file.parent.mkdir(parents=True)
    file.symlink_to("/dev/full")
    return file


def test_a_disk_that_gets_room_again_costs_nothing_but_time(
    learner: Learning, run: Run, saver: Saver, caplog: pytest.LogCaptureFixture
) -> None:
    made = learner(KINDS["lora"])
    made.step(0)
    file = on_a_full_disk(run, 1)
    threading.Timer(0.4, file.unlink).start()
    save(saver, made, 1)
    saver.wait()
    assert "No space left on device; trying again in" in caplog.text
    record = checkpoint.newest(run, PLACE, 2)
    assert record is not None
    assert record.step == 1


def test_a_disk_that_stays_full_is_told_with_the_way_out_and_the_run_stays_resumable(
    learner: Learning, run: Run
) -> None:
    made, saver = learner(KINDS["lora"]), Saver(run, PLACE, attempt=1, keep=2, patience=0.3)
    made.step(0)
    save(saver, made, 1)
    saver.wait()
    on_a_full_disk(run, 2)
    save(saver, made, 2)
    made.step(1)
    with pytest.raises(StorageError, match=r"step 2 could not be saved: .*No space left") as caught:
        saver.wait()
    assert "free some space" in caught.value.hint
    assert "run the same command again" in caught.value.hint
    saver.close()
    record = checkpoint.newest(run, PLACE, 2)
    assert record is not None
    assert record.step == 1


@pytest.mark.parametrize("size", [700, 2000, 4096, 9000])
def test_a_file_that_takes_some_bytes_only_is_told_by_what_the_disk_said(
    learner: Learning, run: Run, size: int
) -> None:
    """At most sizes torch counts the bytes then, and raises what looks like its own mistake."""
    made, saver = learner(KINDS["full"]), Saver(run, PLACE, attempt=1, keep=2, patience=0.0)
    made.step(0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        save(saver, made, 1)
        with pytest.raises(StorageError, match=r"step 1 could not be saved: .*File too large"):
            saver.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        saver.close()


def test_a_mistake_in_the_thread_is_raised_where_training_waits(
    learner: Learning, saver: Saver
) -> None:
    made = learner(KINDS["lora"])
    made.step(0)

    def fail() -> None:
        raise ZeroDivisionError

    save(saver, made, 1, flush=fail)
    with pytest.raises(ZeroDivisionError):
        saver.wait()
    save(saver, made, 2)
    assert saver.wait() is not None
