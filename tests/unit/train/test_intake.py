"""What a worker has of its data, and what it says of its way through it."""

import json
from pathlib import Path

import pytest

from ftray.config.data import sources_of
from ftray.config.run import RunConfig
from ftray.data.tokens.demand import Signals, read_reached
from ftray.data.tokens.pipeline import make_all, plan_tokens
from ftray.runs import Run
from ftray.train.intake import Intake
from ftray.train.work import Feed


@pytest.fixture
def intake(tiny_folder: Path, tmp_path: Path) -> Intake:
    """The first worker's, of a run that keeps no shards."""
    lines = [json.dumps({"text": f"row {n}"}) for n in range(40)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    config = RunConfig.model_validate(
        {
            "name": "small",
            "model": {"name": str(tiny_folder)},
            "data": {"train": str(tmp_path / "train.jsonl"), "keep_shards": False},
            "train": {"max_steps": 3, "global_batch_size": 1},
        }
    )
    run = Run(str(tmp_path), config.name)
    sources = sources_of(config.data.train)
    made = make_all(plan_tokens(sources, config.data, tiny_folder, str(tmp_path)))
    return Intake(config, run, Feed(made.folder, None, streams=True), is_first=True)


def test_the_shards_of_a_batch_are_needed_by_all_workers(intake: Intake, tmp_path: Path):
    reached = Signals.of(str(tmp_path / "runs" / "small")).reached
    intake.saved(0)
    assert intake.packs(0)
    assert read_reached(reached, 1).last == [(0, 0)]


def test_a_run_that_is_through_needs_nothing_more(intake: Intake, tmp_path: Path):
    """What would come next may be bad, or never be made."""
    intake.saved(3)
    assert not Path(Signals.of(str(tmp_path / "runs" / "small")).reached).exists()
