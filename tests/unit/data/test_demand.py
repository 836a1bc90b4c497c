"""Word between a run and who makes its shards: what is needed, what may come, and the end."""

import json
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from ftray.data.reading.files import Range
from ftray.data.tokens.demand import (
    Demand,
    DemandGate,
    EndGate,
    Gate,
    ReleasedError,
    Shard,
    read_reached,
    release,
)

PART = Range(0, 0, 0, "a.jsonl.gz", "a.jsonl.gz", "jsonl", "gzip", 0, None, 0, "stamp")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "reached.json")


def is_open(gate: Gate, shard: Shard) -> bool:
    """Whether a shard may come, or has to wait."""

    def wait() -> None:
        with suppress(ReleasedError):
            gate.wait(replace(PART, number=shard[0]), shard[1])

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(0.2)
    return not waiting.is_alive()


@pytest.mark.parametrize(
    ("first", "last", "opened", "held"),
    [
        ((0, 0), (0, 6), [(0, 10)], [(0, 11), (1, 4)]),
        ((0, 6), (1, 0), [(0, 9), (0, 99), (1, 4)], [(1, 5), (2, 4)]),  # the end of 0 is needed too
        ((2, 6), (0, 1), [(2, 99), (0, 5)], [(0, 6), (1, 4)]),  # the next time through has begun
        ((0, 60), (0, 3), [(0, 70), (0, 20)], [(1, 4)]),
        (None, None, [(0, 3)], [(0, 4)]),
    ],
)
def test_a_long_range_is_made_a_little_ahead_and_never_held_behind_what_is_needed(
    first: Shard | None, last: Shard | None, opened: list[Shard], held: list[Shard], path: str
):
    Path(path).write_text(json.dumps({"first": [first], "last": [last]}))
    gate = DemandGate(path, sources=1, ahead=4)
    assert [shard for shard in [*opened, *held] if is_open(gate, shard)] == opened
    release(path)  # so that no thread of this test goes on


def test_the_furthest_shard_that_was_asked_for_is_told_whatever_is_read_later(path: str):
    demand = Demand(path, sources=1)
    demand.needs([(2, 0)], [(2, 5)])
    demand.asks_for(0, (4, 1), waits=True)
    demand.takes([(0, (2, 3)), (0, (3, 0))])
    assert read_reached(path, 1).last == [(4, 1)]
    demand.takes([(0, (5, 0))])
    assert read_reached(path, 1).last == [(5, 0)]
    demand.takes([(0, (0, 1))])  # the next time through
    assert read_reached(path, 1).last == [(0, 1)]
    demand.needs([(0, 0)], [(0, 0)])
    assert read_reached(path, 1) == replace(read_reached(path, 1), first=[(0, 0)], last=[(0, 1)])


def test_a_last_shard_that_training_has_passed_is_forgotten(path: str):
    demand = Demand(path, sources=1)
    demand.needs([(8, 0)], [(9, 5)])
    demand.needs([(0, 0)], [(0, 2)])
    assert read_reached(path, 1).last == [(0, 2)]


def test_a_window_without_rows_of_a_source_leaves_its_place(path: str):
    demand = Demand(path, sources=2)
    demand.needs([(1, 0), (7, 0)], [(1, 2), (7, 1)])
    demand.needs([(2, 0), None], [(2, 2), None])
    assert read_reached(path, 2).first == [(2, 0), (7, 0)]
    assert read_reached(path, 2).last == [(2, 2), (7, 1)]


@pytest.mark.parametrize("ahead", [None, 4])
def test_who_makes_shards_for_a_run_that_has_ended_stops_at_the_next(ahead: int | None, path: str):
    gate = EndGate(path) if ahead is None else DemandGate(path, sources=1, ahead=ahead)
    gate.wait(PART, 0)
    release(path)
    with pytest.raises(ReleasedError):
        gate.wait(PART, 1)
