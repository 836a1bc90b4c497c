"""A run of the small model, and the searches over it."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from ftray import commands, storage
from ftray.records import read_record
from ftray.tune.ledger import TrialRecord
from ftray.tune.results import TrialResult
from ftray.tune.rungs import trial_folder
from ftray.tune.search import Found

STEPS = 6


class Workplace:
    """A folder with a run file, its data, and the root of its storage."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, str(folder / "root")

    @property
    def run(self) -> str:
        """The run file."""
        return str(self.folder / "run.yaml")

    def space(self, tree: dict[str, Any]) -> str:
        """Write a space file of this name; the search has the name too."""
        path = self.folder / f"{tree['name']}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return str(path)

    def search(self, tree: dict[str, Any], *overrides: str) -> Found:
        """Search as the command does."""
        return commands.tune(self.run, self.space(tree), overrides)

    def trials(self, name: str) -> dict[str, TrialResult]:
        """What the trials of a search have come to by now."""
        folder = storage.join(self.root, "searches", name)
        records = [
            read_record(storage.join(trial_folder(folder, trial), "trial.json"), TrialRecord)
            for trial in storage.names(storage.join(folder, "trials"))
        ]
        return {record.result.id: record.result for record in records if record is not None}

    def wait_for(self, name: str, has_come: Callable[[list[TrialResult]], bool]) -> None:
        """Wait until the trials of a search are so far."""
        ends = time.monotonic() + 240
        while not has_come(list(self.trials(name).values())):
            assert time.monotonic() < ends, self.trials(name)
            time.sleep(0.05)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Workplace:
    folder = tmp_path_factory.mktemp("search")
    for name, first, count in (("train", 0, 48), ("eval", 100, 8), ("heldout", 200, 8)):
        pairs = [
            {"prompt": f"{n} and {n + 1}", "completion": str(2 * n + 1)}
            for n in range(first, first + count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "run.yaml").write_text(f"""
name: sums
model: {{name: {small_model}}}
adapter: {{method: lora, rank: 8, alpha: 16}}
data: {{train: train.jsonl, eval: eval.jsonl, format: prompt_completion, max_length: 64}}
train: {{max_steps: {STEPS}, global_batch_size: 4, micro_batch_size: 2}}
storage: root
""")
    return Workplace(folder)


def processes(title: str) -> list[psutil.Process]:
    """Ray's processes of this name below ours."""
    below = psutil.Process().children(recursive=True)
    name = re.compile(rf"ray::{title}\b")  # behind it may come what it does
    return [process for process in below if name.match("".join(process.cmdline()))]
