"""How much each source of a mixture was to give to a run, and how much it has given."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from ftray import runs, storage
from ftray.data.batches import EpochBatches
from ftray.data.collation import Pack
from ftray.data.samples import Samples
from ftray.runs import Run


@dataclass(frozen=True)
class SourceUse:
    """One source of a run; None where it is not known before all data is made."""

    name: str
    rows: int | None
    rows_an_epoch: int | None
    tokens_planned: int | None
    tokens_seen: int = 0


def planned(names: Sequence[str], samples: Samples, batches: EpochBatches) -> list[SourceUse]:
    """Say what each source gives over a whole run: its share of each epoch, as far as it goes."""
    uses = []
    epochs = batches.epochs
    for number, (name, count) in enumerate(zip(names, batches.rows_an_epoch, strict=True)):
        lengths = samples.length[samples.source == number]
        mean = float(lengths.mean()) if len(lengths) else 0.0
        uses.append(SourceUse(name, len(lengths), count, round(mean * count * epochs)))
    return uses


def write_plan(run: Run, uses: Sequence[SourceUse]) -> None:
    """Keep what was planned in the run's folder."""
    tree = [asdict(use) for use in uses]
    storage.write(storage.join(run.folder, _FILE), json.dumps(tree, indent=1).encode())


def read_usage(run: Run) -> list[SourceUse]:
    """Return what each source was to give, and what the run's steps have taken of it."""
    data = storage.read_if_exists(storage.join(run.folder, _FILE))
    uses = [SourceUse(**tree) for tree in json.loads(data)] if data else []
    lines = runs.read_metrics(run) if uses else []
    keys = [_key(number) for number in range(len(uses))]
    seen = [sum(line.get(key, 0) for line in lines) for key in keys]
    return [
        SourceUse(use.name, use.rows, use.rows_an_epoch, use.tokens_planned, count)
        for use, count in zip(uses, seen, strict=True)
    ]


def tokens_by_source(packs: Iterable[Pack], sources: int) -> dict[str, int]:
    """Count a global batch's tokens by source, for its line of metrics; of one source nothing."""
    if sources == 1:
        return {}
    counts = {_key(number): 0 for number in range(sources)}
    for pack in packs:
        for sample in pack:
            counts[_key(sample.source)] += sample.length
    return counts


_FILE = "sources.json"


def _key(number: int) -> str:
    return f"tokens_of_source_{number}"
