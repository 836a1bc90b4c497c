"""A run goes on from a checkpoint as if it had never stopped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader

from ftray import runs, storage
from ftray.errors import StorageError
from ftray.runs import CheckpointRecord, Run
from ftray.train import checkpoint
from ftray.train.checkpoint import Progress
from ftray.train.parallel import Place

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

PLACE = Place(0, 1, torch.device("cpu"))
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"adapter": {"method": "lora", "rank": 4, "dropout": 0.2}},
    "lora, 8-bit moments": {
        "adapter": {"method": "lora", "rank": 64},  # moments of under 4096 numbers stay fp32
        "train.optimizer": "adamw_8bit",
    },
    "qlora": {"adapter": {"method": "qlora", "rank": 4}},
    "full": {"adapter": {"method": "full"}, "train.weight_decay": 0.1},
    "full, 8-bit moments": {"adapter": {"method": "full"}, "train.optimizer": "adamw_8bit"},
}

Learning = Callable[[dict[str, Any]], Any]


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    return Run(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}", "run")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Where one run lies that others are copies of."""
    return Run(str(tmp_path_factory.mktemp("shelf")), "run")


@pytest.fixture
def saved(run: Run, shelf: Run, learner: Learning) -> Run:
    """A run that has saved after steps 1 and 2."""
    if not runs.checkpoints(shelf):
        made = learner(KINDS["lora"])
        for step in (1, 2):
            made.step(step)
            save(shelf, made, step)
    for held in storage.contents(shelf.folder):
        storage.write(f"{run.folder}/{held.name}", storage.read(f"{shelf.folder}/{held.name}"))
    return run


def save(run: Run, made: Any, step: int, attempt: int = 1) -> CheckpointRecord:
    progress = Progress(step, {"loss": 1.0}, is_best=False, micro_batch_size=2)
    checkpoint.save(run, made.trainable, made.optimizer, progress, PLACE, attempt)
    return next(record for record in runs.checkpoints(run) if record.step == step)


@pytest.mark.parametrize("kind", KINDS)
def test_the_steps_after_loading_are_those_of_a_run_that_never_stopped(
    kind: str, learner: Learning, tmp_path: Path
) -> None:
    run, never_stopped = Run(str(tmp_path), "run"), learner(KINDS[kind])
    for step in range(2):
        never_stopped.step(step)
    record = save(run, never_stopped, 2)
    started_again = learner(KINDS[kind])
    checkpoint.load(run, record, started_again.trainable, started_again.optimizer)
    for step in (2, 3):
        assert started_again.step(step) == never_stopped.step(step)
    expected = never_stopped.weights()
    for name, values in started_again.weights().items():
        assert torch.equal(values, expected[name]), name


def test_loading_itself_changes_no_weight_and_leaves_no_gradient(
    learner: Learning, run: Run
) -> None:
    made = learner(KINDS["lora"])
    made.step(0)
    record, before = save(run, made, 1), made.weights()
    checkpoint.load(run, record, made.trainable, made.optimizer)
    assert all(torch.equal(values, before[name]) for name, values in made.weights().items())
    assert all(parameter.grad is None for parameter in made.trainable.values())


def test_weights_can_be_loaded_without_an_optimizer(learner: Learning, run: Run) -> None:
    made = learner(KINDS["lora"])
    made.step(0)
    record, fresh = save(run, made, 1), learner(KINDS["lora"])
    checkpoint.load(run, record, fresh.trainable)
    expected = made.weights()
    assert all(torch.equal(values, expected[name]) for name, values in fresh.weights().items())


def test_the_record_says_how_the_run_was_computed(learner: Learning, run: Run) -> None:
    made = learner(KINDS["lora"])
    made.step(0)
    record = save(run, made, 1)
    assert (record.step, record.attempt, record.world_size) == (1, 1, 1)
    assert (record.threads, record.micro_batch_size) == (torch.get_num_threads(), 2)
    assert sorted(record.files) == [".metadata", "__0_0.distcp"]
    assert runs.verify(run, record) == []


def test_of_qlora_only_the_adapter_and_its_moments_are_saved(
    learner: Learning, tmp_path: Path
) -> None:
    run, made = Run(str(tmp_path), "run"), learner(KINDS["qlora"])
    made.step(0)
    save(run, made, 1)
    reader = FileSystemReader(runs.checkpoint_folder(run, 1, 1))
    saved = reader.read_metadata().state_dict_metadata
    assert all("lora_" in name for name in saved)
    assert len(saved) == 4 * len(made.trainable)  # values, two moments, and how many steps


def change(path: str, make: Callable[[bytes], bytes]) -> None:
    storage.write(path, make(storage.read(path)))


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]  # one bit


DAMAGES: dict[str, Callable[[str], None]] = {
    "a flipped bit": lambda folder: change(f"{folder}/__0_0.distcp", flipped),
    "a torn file": lambda folder: change(f"{folder}/__0_0.distcp", lambda data: data[:-100]),
    "an empty file": lambda folder: change(f"{folder}/.metadata", lambda data: b""),
    "a missing file": lambda folder: storage.delete(f"{folder}/__0_0.distcp"),
    "no metadata": lambda folder: storage.delete(f"{folder}/.metadata"),
    "a torn record": lambda folder: change(f"{folder}/record.json", lambda data: data[:40]),
    "an empty record": lambda folder: change(f"{folder}/record.json", lambda data: b""),
    "another record": lambda folder: change(f"{folder}/record.json", lambda data: b'{"schema": 1}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_deleted_and_the_one_before_is_taken(
    damage: str, saved: Run, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGES[damage](runs.checkpoint_folder(saved, 2, 1))
    found = checkpoint.newest(saved, PLACE, 2)
    assert found is not None
    assert found.step == 1
    assert "checkpoint of step 2 is damaged" in caplog.text
    assert "STEP 0" not in caplog.text
    assert not storage.exists(runs.checkpoint_folder(saved, 2, 1))


@pytest.mark.parametrize("damage", DAMAGES)
def test_when_all_are_damaged_the_run_says_loudly_that_it_starts_again(
    damage: str, saved: Run, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        DAMAGES[damage](runs.checkpoint_folder(saved, step, 1))
    assert checkpoint.newest(saved, PLACE, 2) is None
    assert "no sound checkpoint: IT STARTS AGAIN AT STEP 0" in caplog.text


def test_a_folder_without_a_record_never_counts_and_goes_when_the_next_attempt_starts(
    saved: Run, caplog: pytest.LogCaptureFixture
) -> None:
    torn = runs.checkpoint_folder(saved, 2, 1)
    storage.delete(f"{torn}/record.json")
    assert [record.step for record in runs.checkpoints(saved)] == [1]
    own = checkpoint.newest(saved, PLACE, 1)  # the same attempt may be writing it
    assert own is not None
    assert storage.exists(torn)
    checkpoint.newest(saved, PLACE, 2)
    assert not storage.exists(torn)
    assert "damaged" not in caplog.text


def test_without_a_checkpoint_a_run_starts_at_the_beginning(run: Run) -> None:
    assert checkpoint.newest(run, PLACE, 2) is None


def test_a_disk_that_takes_no_more_is_a_storage_error(learner: Learning, tmp_path: Path) -> None:
    run, made = Run(str(tmp_path), "run"), learner(KINDS["lora"])
    made.step(0)
    folder = Path(runs.checkpoint_folder(run, 1, 1))
    folder.mkdir(parents=True)
    (folder / "__0_0.distcp").mkdir()  # a folder where the file belongs
    with pytest.raises(StorageError, match="step-000001-a1"):
        save(run, made, 1)
