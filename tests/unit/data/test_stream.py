"""Batches of data that is still being made: the same ones whenever its shards come."""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from ftray.config.data import DataConfig
from ftray.config.run import TrainConfig
from ftray.data.batching.stream import StreamBatches
from ftray.data.rendering.chat import Tokens
from ftray.data.tokens.columns import Columns, Flags, Ints, address_of, key_of
from ftray.data.tokens.manifest import FileRecord, TokenPlan
from ftray.data.tokens.memory import MemoryRows
from ftray.errors import DataError

SHARD_ROWS = 20


class SlowRows:
    """Shards of some sources, each of which comes when the test lets it."""

    def __init__(self, sizes: list[int], *, seconds: float = 0.0) -> None:
        self.plan = TokenPlan(
            "digest",
            "template",
            [f"source {number}" for number in range(len(sizes))],
            [FileRecord(n, f"{n}.jsonl", "jsonl", 1, size) for n, size in enumerate(sizes)],
        )
        self.seconds = seconds
        self.may_come = threading.Event()
        self.may_come.set()
        self.asked: list[tuple[int, int]] = []
        self._rows = [_rows(size, source) for source, size in enumerate(sizes)]

    def stream(self, source: int) -> Iterator[Columns]:
        whole = self._rows[source].columns
        for part, start in enumerate(range(0, len(whole), SHARD_ROWS)):
            self.asked.append((source, part))
            self.may_come.wait()
            time.sleep(self.seconds)
            shard = whole.at(slice(start, start + SHARD_ROWS))
            keys = shard.key - start + key_of(source, part)
            yield Columns(keys, *shard._arrays()[1:])

    def ids(self, key: int) -> Ints:
        return self._rows[address_of(key)[0]].ids(self._number(key))

    def trained(self, key: int) -> Flags:
        return self._rows[address_of(key)[0]].trained(self._number(key))

    def place(self, key: int) -> str:
        return f"row {self._number(key)}"

    @staticmethod
    def _number(key: int) -> int:
        _, part, row = address_of(key)
        return part * SHARD_ROWS + row


def _rows(size: int, source: int) -> MemoryRows:
    generator = random.Random(source)
    rows = []
    for number in range(size):
        length = generator.randint(4, 12)
        rows.append(Tokens([source, number, *range(length - 2)], bytes([0, *[1] * (length - 1)])))
    return MemoryRows(rows, source)


def batches(rows: SlowRows, sources: list[dict[str, float]], **changes: object) -> StreamBatches:
    train = [{"path": f"{n}", **settings} for n, settings in enumerate(sources)]
    data = DataConfig.model_validate({"train": train, "max_length": 16, **changes})
    settings = TrainConfig.model_validate({"max_steps": 60, "global_batch_size": 4, "seed": 5})
    return StreamBatches(rows, data, settings, tokens=100)


def seen(made: StreamBatches, steps: range) -> list[tuple[int, int]]:
    """Sources and keys in the order of training."""
    packs = [pack for step in steps for pack in made.packs(step)]
    return [(sample.source, sample.key) for pack in packs for sample in pack]


def test_a_batch_depends_neither_on_timing_nor_on_what_was_asked_before():
    sizes, sources = [90, 45], [{}, {}]
    made = batches(SlowRows(sizes), sources)
    in_order = [made.packs(step) for step in range(60)]
    slow = batches(SlowRows(sizes, seconds=0.005), sources)
    assert [slow.packs(step) for step in range(60)] == in_order
    for step in random.Random(1).sample(range(60), 10):
        assert batches(SlowRows(sizes), sources).packs(step) == in_order[step]
        assert made.packs(step) == in_order[step]


def test_every_batch_is_full_and_an_epoch_has_each_row_once():
    rows = SlowRows([90, 45])
    made = batches(rows, [{}, {}])
    assert {len(made.packs(step)) for step in range(60)} == {4}
    order = seen(made, range(60))
    for epoch in range(len(order) // 135):
        chosen = order[epoch * 135 : (epoch + 1) * 135]
        assert len(set(chosen)) == 135
    assert order[:135] != order[135:270]
    assert made.epoch_of(0) == 0
    assert made.epoch_of(59) >= 2


def test_sources_are_mixed_from_the_start_by_their_sizes():
    made = batches(SlowRows([400, 100]), [{}, {}])
    first = [source for source, _ in seen(made, range(20))]
    assert 0.15 < first.count(1) / len(first) < 0.25


def test_weights_hold_at_any_time_and_an_ended_source_begins_again():
    made = batches(SlowRows([40, 400]), [{"weight": 3}, {"weight": 1}])
    order = seen(made, range(40))
    assert len(order) > 200
    assert abs([source for source, _ in order].count(0) / len(order) - 0.75) < 0.03
    windows = {made.window_of(step).cursor.number: made.window_of(step) for step in range(40)}
    packs = [pack for window in windows.values() for pack in window.packs]
    times = Counter(sample.key for pack in packs for sample in pack if sample.source == 0)
    assert len(times) == 40
    assert max(times.values()) - min(times.values()) <= 1  # all of it before any of it again


def test_the_first_batch_needs_the_first_shard_alone():
    rows = SlowRows([400])
    made = batches(rows, [{}])
    made.packs(0)
    assert {(0, 0)} <= set(rows.asked) <= {(0, part) for part in range(3)}  # and what comes next


def test_an_abandoned_wait_does_not_hold_up_the_end():
    rows = SlowRows([400])
    made = batches(rows, [{}])
    made.packs(0)
    rows.may_come.clear()
    waiting = [thread for thread in threading.enumerate() if thread.name == "next window"]
    assert all(thread.daemon for thread in waiting)
    rows.may_come.set()


def test_without_kept_shards_every_epoch_is_in_file_order_within_a_window():
    rows = SlowRows([500])
    made = batches(rows, [{}], keep_shards=False)
    order = [key for _, key in seen(made, range(150))]
    for epoch in range(2):
        numbers = [SlowRows._number(key) for key in order[epoch * 500 : (epoch + 1) * 500]]
        assert sorted(numbers) == list(range(500))
        assert numbers != list(range(500))
        assert max(numbers[:100]) < 300


def test_a_window_tells_which_shards_it_needs():
    made = batches(SlowRows([200, 100]), [{}, {}], keep_shards=False)
    window = made.window_of(12)
    ranges = [pack for pack in window.packs]
    keys = [sample.key for pack in ranges for sample in pack]
    for source in (0, 1):
        shards = sorted({address_of(key)[:2] for key in keys if address_of(key)[0] == source})
        assert (window.first[source], window.last[source]) == (shards[0], shards[-1])


def test_rows_set_aside_for_eval_are_never_drawn():
    whole = batches(SlowRows([200]), [{}])
    some = batches(SlowRows([200]), [{}], eval_fraction=0.3)
    assert len(set(seen(whole, range(60)))) == 200
    assert 110 < len(set(seen(some, range(60)))) < 170


def test_a_source_without_rows_does_not_hold_up_the_epochs():
    made = batches(SlowRows([0, 40]), [{"weight": 1}, {"weight": 3}])
    assert {source for source, _ in seen(made, range(60))} == {1}
    assert made.epoch_of(59) >= 2


def test_data_that_is_all_set_aside_is_an_error():
    with pytest.raises(DataError, match="no row is left to train on"):
        batches(SlowRows([20]), [{}], eval_fraction=0.999999).packs(0)


def test_data_without_a_learnable_row_is_an_error():
    long = SlowRows([60])
    long._rows = [MemoryRows([Tokens(list(range(40)), bytes([0] * 39 + [1]))] * 60)]
    with pytest.raises(DataError, match="no row has a token to learn"):
        batches(long, [{}]).packs(0)
