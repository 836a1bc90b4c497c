"""How much each source of a mixture was to give to a run, and how much it has given."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from ftray import runs, storage
from ftray.runs import Run


@dataclass(frozen=True)
class SourceUse:
    """One source of a run; None where it is not known before all data is made."""

    name: str
    rows: int | None
    rows_an_epoch: int | None
    tokens_planned: int | None
    tokens_seen: int = 0


def write_plan(run: Run, uses: Sequence[SourceUse]) -> None:
    """Keep what was planned in the run's folder."""
    tree = [asdict(use) for use in uses]
    storage.write(storage.join(run.folder, _FILE), json.dumps(tree, indent=1).encode())


def read_usage(run: Run) -> list[SourceUse]:
    """Return what each source was to give, and what the run's steps have taken of it.

    Empty for a run of one source.
    """
    data = storage.read_if_exists(storage.join(run.folder, _FILE))
    uses = [SourceUse(**tree) for tree in json.loads(data)] if data else []
    if len(uses) < 2:
        return []
    lines = [line for line in runs.read_metrics(run) if "loss" in line]
    return [
        replace(use, tokens_seen=sum(line[metric_of(number)] for line in lines))
        for number, use in enumerate(uses)
    ]


def metric_of(source: int) -> str:
    """Name the metric that counts a step's tokens of a source."""
    return f"tokens_of_source_{source}"


_FILE = "sources.json"
