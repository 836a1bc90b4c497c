"""Shards made beside their trainer: the same batches, a bounded disk, and errors that arrive."""

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pytest

from ftray.config.data import DataConfig, sources_of
from ftray.config.run import TrainConfig
from ftray.data.batching.stream import StreamBatches
from ftray.data.tokens.cache import ShardCache
from ftray.data.tokens.demand import Demand, Follower, Signals
from ftray.data.tokens.maker import Making
from ftray.data.tokens.manifest import find_token_set, publish_plan, published_ranges
from ftray.data.tokens.pipeline import Job, make_all, plan_tokens
from ftray.data.tokens.rows import Rows
from ftray.errors import DataError

pytestmark = pytest.mark.usefixtures("ray_cluster")

AHEAD = 4
STEPS = 60


@dataclass(frozen=True)
class Trainer:
    """What a worker has of a run."""

    rows: Rows
    batches: StreamBatches
    demand: Demand | None

    def says(self, step: int) -> None:
        """Tell as after a checkpoint."""
        window = self.batches.window_of(step)
        self.demand.needs(window.first, window.last)

    def texts(self, step: int) -> list[list[int]]:
        """Read the tokens of a step, as training does."""
        packs = self.batches.packs(step)
        return [self.rows.ids(sample.key).tolist() for pack in packs for sample in pack]


@pytest.fixture
def job_of(small_model: Path, tmp_path: Path) -> Callable[..., Job]:
    def plan(data: DataConfig, root: str = "root") -> Job:
        sources, place = sources_of(data.train), str(tmp_path / root)
        job = plan_tokens(sources, data, small_model, place, range_bytes=4000)
        return replace(job, recipe=replace(job.recipe, shard_tokens=300))

    return plan


def data_of(*paths: Path, **changes: object) -> DataConfig:
    train = [str(path) for path in paths]
    settings = {"train": train, "format": "text", "max_length": 64, "shards_ahead": AHEAD}
    return DataConfig.model_validate({**settings, **changes})


def write(path: Path, rows: int) -> Path:
    lines = [json.dumps({"text": f"row {n} of {path.name}" * (n % 5 + 1)}) for n in range(rows)]
    text = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@contextmanager
def training(job: Job, data: DataConfig, run: Path, tasks: int = 2) -> Iterator[Trainer]:
    """What the driver and a worker of a run do with their data."""
    signals, sources = Signals.of(str(run)), sources_of(data.train)
    publish_plan(job.folder, job.plan)
    demand = None if data.keep_shards else Demand(signals.reached, len(sources))
    rows = Rows(
        job.folder,
        ShardCache(run / "cache", 10**9),
        Follower(signals.error, demand),
        fails_on_bad_rows=data.on_bad_row == "fail",
    )
    signals.clear()
    making = Making(job, signals, data, sources, tasks)
    train = TrainConfig.model_validate({"max_steps": STEPS, "global_batch_size": 4})
    try:
        yield Trainer(rows, StreamBatches(rows, data, train, tokens=60), demand)
    finally:
        making.stop()


def test_the_same_batches_come_while_shards_are_made_and_afterwards(
    job_of: Callable[..., Job], tmp_path: Path
):
    data = data_of(write(tmp_path / "a.jsonl", 400), write(tmp_path / "b.jsonl.gz", 150))
    made = job_of(data, "made")
    make_all(made)
    complete = Rows(made.folder, ShardCache(tmp_path / "cache", 10**9))
    train = TrainConfig.model_validate({"max_steps": STEPS, "global_batch_size": 4})
    expected = StreamBatches(complete, data, train, tokens=60)

    job = job_of(data)
    with training(job, data, tmp_path / "run") as trainer:
        assert find_token_set(job.folder) is None
        assert [trainer.batches.packs(n) for n in range(STEPS)] == [
            expected.packs(n) for n in range(STEPS)
        ]
        assert trainer.texts(3)
    assert find_token_set(job.folder) == replace(find_token_set(made.folder), folder=job.folder)


def test_without_kept_shards_the_disk_holds_a_few_at_any_time(
    job_of: Callable[..., Job], tmp_path: Path
):
    """More than once through the data, and a restart that goes back."""
    data = data_of(
        write(tmp_path / "a.jsonl", 250), write(tmp_path / "b.jsonl.gz", 100), keep_shards=False
    )
    made = job_of(data, "made")
    make_all(made)
    all_shards = len(list(Path(made.folder).glob("shard-*.rows.arrow")))
    complete = Rows(made.folder, ShardCache(tmp_path / "cache", 10**9))
    train = TrainConfig.model_validate({"max_steps": STEPS, "global_batch_size": 4})
    expected = StreamBatches(complete, data, train, tokens=60)

    job, most = job_of(data), 0
    for start in (0, STEPS // 2):
        with training(job, data, tmp_path / "run") as trainer:
            for step in range(start, STEPS):
                trainer.says(step)
                keys = [s.key for pack in expected.packs(step) for s in pack]
                assert trainer.texts(step) == [complete.ids(key).tolist() for key in keys]
                tokens = set(Path(job.folder).glob("shard-*.arrow"))
                tokens -= set(Path(job.folder).glob("shard-*.rows.arrow"))
                most = max(most, len(tokens))
    assert expected.epoch_of(STEPS - 1) >= 1
    assert most < all_shards * 2 / 3


def test_what_ends_the_making_ends_the_training(job_of: Callable[..., Job], tmp_path: Path):
    path = write(tmp_path / "a.jsonl", 400)
    lines = path.read_text().split("\n")
    lines[380] = "no"
    path.write_text("\n".join(lines))
    data = data_of(path)
    with training(job_of(data), data, tmp_path / "run") as trainer:
        assert trainer.texts(0)
        with pytest.raises(DataError, match=r"a.jsonl line 381: invalid JSON"):
            trainer.batches.packs(10 * STEPS)


def test_a_run_that_needs_no_more_does_not_wait_for_the_rest(
    job_of: Callable[..., Job], tmp_path: Path
):
    data = data_of(write(tmp_path / "a.jsonl", 2000))
    job = job_of(data)
    with training(job, data, tmp_path / "run") as trainer:
        assert trainer.texts(0)
        began = time.monotonic()
    assert time.monotonic() - began < 30
    assert not [thread for thread in threading.enumerate() if thread.name == "token shards"]


def test_a_run_that_goes_on_in_a_late_file_is_not_kept_waiting_by_the_first_ones(
    job_of: Callable[..., Job], tmp_path: Path
):
    """A single task, and files of which each waits for its trainer."""
    (tmp_path / "data").mkdir()
    for name in "abc":
        write(tmp_path / "data" / f"{name}.jsonl.gz", 120)
    data = data_of(tmp_path / "data", keep_shards=False, shards_ahead=2)
    job, starts = job_of(data), (0, 45)
    for start in starts:
        with training(job, data, tmp_path / "run", tasks=1) as trainer:
            trainer.says(start)
            for step in range(start, start + 10 if start else 50):
                trainer.says(step)
                assert trainer.texts(step)
    assert trainer.batches.window_of(start).first[0][0] == 2  # else it would show nothing


def test_the_rows_that_were_set_aside_stay_readable(job_of: Callable[..., Job], tmp_path: Path):
    data = data_of(write(tmp_path / "a.jsonl", 250), keep_shards=False, eval_fraction=0.2)
    job = job_of(data)
    with training(job, data, tmp_path / "run") as trainer:
        [shard] = islice(trainer.rows.stream(0), 1)
        for step in range(20):
            trainer.says(step)
            assert trainer.texts(step)
        time.sleep(1.5)
        tokens = Path(job.folder) / "shard-000000.arrow"
        assert (trainer.batches.window_of(19).first[0] > (0, 0), tokens.exists()) == (True, True)
    assert len(shard)


def test_a_long_file_ends_with_the_run_and_what_was_made_of_it_stays(
    job_of: Callable[..., Job], tmp_path: Path
):
    data = data_of(write(tmp_path / "a.jsonl.gz", 60_000))
    job = job_of(data)
    with training(job, data, tmp_path / "run") as trainer:
        assert trainer.texts(0)
    assert published_ranges(job.folder) == {}  # not made to its end, which takes 25 s
    assert list(Path(job.folder).glob("shard-*.rows.arrow"))


def test_a_bad_row_that_another_run_has_left_out_is_still_one(
    job_of: Callable[..., Job], tmp_path: Path
):
    path = write(tmp_path / "a.jsonl", 400)
    path.write_text("\n".join([*path.read_text().split("\n")[:380], "no"]))
    lenient = data_of(path, on_bad_row="drop")
    assert make_all(job_of(lenient)).bad_rows == 1
    data = data_of(path)
    with training(job_of(data), data, tmp_path / "run") as trainer:
        assert trainer.texts(0)
        with pytest.raises(DataError, match=r"a.jsonl line 381: invalid JSON"):
            trainer.batches.packs(10 * STEPS)
