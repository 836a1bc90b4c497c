"""Mixtures: how much of each source is in an epoch, and that no row is favoured."""

import numpy as np
import pytest

from ftray.config.data import SourceConfig
from ftray.data.batching.mixture import counts, drawn, permutation


def sources(*settings: dict[str, float]) -> list[SourceConfig]:
    return [SourceConfig.model_validate({"path": "a", **some}) for some in settings]


def test_without_settings_an_epoch_has_every_row_once():
    assert counts([10, 3], sources({}, {})) == [10, 3]


def test_weights_share_out_as_many_rows_as_there_are():
    assert counts([900, 100], sources({"weight": 1}, {"weight": 1})) == [500, 500]
    assert counts([10, 10, 10], sources({"weight": 1}, {"weight": 2}, {"weight": 3})) == [5, 10, 15]


def test_samples_and_epochs_count_rows_of_their_own_source():
    assert counts([100, 10, 7], sources({"samples": 30}, {"epochs": 2.5}, {})) == [30, 25, 7]


def test_an_empty_source_gives_nothing():
    assert counts([0, 4], sources({"weight": 1}, {"weight": 1})) == [0, 4 // 2]
    assert drawn(0, 0, 0, 0, 0).tolist() == []


@pytest.mark.parametrize("count", [3, 10, 25])
def test_no_row_comes_again_before_all_have_come(count: int):
    order = np.concatenate([drawn(10, count, 7, epoch, 0) for epoch in range(6)])
    assert len(order) == 6 * count
    for cycle in range(len(order) // 10):
        assert sorted(order[cycle * 10 : (cycle + 1) * 10]) == list(range(10))


def test_the_order_depends_on_seed_cycle_and_source_alone():
    assert drawn(50, 50, 1, 0, 0).tolist() == drawn(50, 50, 1, 0, 0).tolist()
    others = [drawn(50, 50, 2, 0, 0), drawn(50, 50, 1, 1, 0), drawn(50, 50, 1, 0, 1)]
    assert all(drawn(50, 50, 1, 0, 0).tolist() != other.tolist() for other in others)


def test_the_order_is_the_same_for_ever():
    """Other numbers here mean that interrupted runs would go on with other rows."""
    assert permutation(6, 3, 0, "rows").tolist() == [4, 5, 3, 1, 2, 0]
