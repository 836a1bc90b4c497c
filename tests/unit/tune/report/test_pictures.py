"""Pictures of searches of every kind; what they look like, people have to judge."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ftray.config.space import DrawConfig
from ftray.tune.report.curves import curves
from ftray.tune.report.look import Shades, spans_powers
from ftray.tune.report.parallel import parallel
from ftray.tune.report.rank_loss import rank_loss
from ftray.tune.report.scale import scale_of
from ftray.tune.report.words import counted, shown, taken, titles
from ftray.tune.results import SearchResult

Searched = Callable[..., SearchResult]
PNG = b"\x89PNG"


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "failed", "metric": None, "curve": []},
        {"state": "failed", "metric": None, "curve": [(1, 2.0), (2, math.nan), (3, math.inf)]},
        {"state": "pending", "metric": None, "curve": []},
        {"state": "stopped", "metric": 0.0, "curve": [(1, 0.0)], "values": {"adapter.rank": 8}},
    ],
)
def test_searches_of_one_fate_are_drawn(searched: Searched, changes: dict[str, Any]):
    result = searched(3)
    alike = [replace(trial, **changes) for trial in result.trials]
    draw_all(replace(result, trials=alike))


def test_every_fate_is_drawn_beside_the_others(searched: Searched):
    result = searched(5)
    fates: list[dict[str, Any]] = [
        {},
        {"state": "running", "curve": [(1, 1.0)]},
        {"metric": math.nan},
        {"metric": -3.0, "curve": [(1, -2.0), (2, -3.0)]},
        {"state": "failed", "curve": [(1, 2.0), (2, 4e9)]},
    ]
    pairs = zip(result.trials, fates, strict=True)
    draw_all(replace(result, trials=[replace(trial, **fate) for trial, fate in pairs]))


def draw_all(result: SearchResult) -> None:
    assert parallel(result).startswith(PNG)
    assert curves(result).startswith(PNG)
    drawn = rank_loss(result)
    assert drawn is None or drawn.startswith(PNG)


def test_a_search_without_trials_is_drawn_too(searched: Searched):
    assert parallel(searched(0)).startswith(PNG)
    assert curves(searched(0)).startswith(PNG)
    assert rank_loss(searched(0)) is None


def test_ranks_are_drawn_only_where_they_were_searched(searched: Searched):
    space = {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}}
    assert rank_loss(searched(4, {"space": space})) is None
    assert (rank_loss(searched(4)) or b"").startswith(PNG)


def test_options_lie_at_equal_distances_and_numbers_in_their_order():
    scale = scale_of(DrawConfig(choice=[32, 4, 8, 16]), [])
    assert [tick.text for tick in scale.ticks] == ["4", "8", "16", "32"]
    assert [scale.place(rank) for rank in (4, 8, 16, 32)] == [0.125, 0.375, 0.625, 0.875]


def test_a_rate_lies_by_its_logarithm_and_has_ticks_at_powers_of_ten():
    scale = scale_of(DrawConfig(loguniform=[1e-5, 1e-2]), [1e-4])
    assert scale.place(1e-5 * 10**1.5) == pytest.approx(0.5)
    assert [tick.text for tick in scale.ticks] == ["1e-5", "1e-4", "1e-3", "1e-2"]


def test_a_narrow_logarithmic_range_has_ticks_between_powers_of_ten():
    ticks = scale_of(DrawConfig(loguniform=[1e-4, 1e-3]), []).ticks
    assert [tick.text for tick in ticks] == ["1e-4", "2e-4", "5e-4", "1e-3"]


def test_values_outside_of_a_range_widen_it():
    scale = scale_of(DrawConfig(uniform=[0.0, 0.1]), [0.2])
    assert scale.place(0.2) == 1.0


def test_whole_numbers_have_whole_ticks():
    assert all(tick.text.isdecimal() for tick in scale_of(DrawConfig(int=[0, 3]), []).ticks)


def test_better_results_are_darker():
    low, high = Shades([1.0, 2.0], "low"), Shades([1.0, 2.0], "high")
    assert low.of(1.0) == high.of(2.0) == "#440154"  # the dark end of viridis
    assert low.of(2.0) != "#440154"


def test_only_values_far_apart_ask_for_a_logarithmic_scale():
    assert spans_powers([1.0, 6.0])
    assert not spans_powers([1.0, 4.0])
    assert not spans_powers([-1.0, 6.0])


def test_keys_are_called_by_their_last_part_unless_two_end_alike():
    assert titles(["adapter.rank", "train.seed"]) == {"adapter.rank": "rank", "train.seed": "seed"}
    assert titles(["a.seed", "b.seed"]) == {"a.seed": "a.seed", "b.seed": "b.seed"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00021, "2.1e-4"),
        (1e-5, "1e-5"),
        (0.05, "0.05"),
        (0.0, "0"),
        (1234567.0, "1.23e6"),
        (1234.0, "1230"),
        (16, "16"),
        (True, "true"),
        (None, "null"),
        ("cosine", "cosine"),
        (["q_proj", "v_proj"], "q_proj+v_proj"),
    ],
)
def test_values_are_written_in_little_room(value: object, text: str):
    assert shown(value) == text


def test_fates_are_counted_in_words():
    assert counted({"failed": 1, "finished": 3}) == "4 trials: 3 finished, 1 failed"


@pytest.mark.parametrize(
    ("hours", "text"),
    [
        (0.01, "36 GPU seconds"),
        (0.5, "30.0 GPU minutes"),
        (12.34, "12.3 GPU hours"),
        (-1.0, "nothing"),
    ],
)
def test_time_is_written_in_what_suits_it(hours: float, text: str):
    assert taken(hours, "GPU") == text
