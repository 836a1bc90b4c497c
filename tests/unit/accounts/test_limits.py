"""The arithmetic of a limit, with the clock in hand."""

import random

import pytest

from ftray.accounts.limits import Window


def test_an_unused_limit_is_there_as_a_whole():
    left = Window(10, 0, 0, 1234.5).allowance()
    assert (left.limit, left.remaining, left.reset) == (10, 10, 0.0)


def test_what_this_minute_took_is_gone_until_the_next_one_has_passed():
    window = Window(10, 0, 4, 600 + 15)
    assert window.allowance().remaining == 6
    assert window.allowance().reset == pytest.approx(105)
    assert window.wait(6) == 0.0


def test_what_the_minute_before_took_comes_back_evenly():
    assert [Window(60, 60, 0, 600 + s).allowance().remaining for s in (0, 15, 30, 59)] == [
        *(0, 15, 30, 59)
    ]
    assert Window(60, 60, 0, 600 + 15).allowance().reset == pytest.approx(45)


def test_more_than_the_limit_is_never_possible():
    assert Window(10, 0, 0, 0.0).wait(11) is None


def test_a_limit_that_was_lowered_leaves_nothing_and_not_less():
    assert Window(10, 0, 50, 30.0).allowance().remaining == 0


def test_the_wait_is_as_long_as_needed_and_no_longer():
    random.seed(0)
    waited = 0
    for _ in range(2000):
        limit = random.randint(1, 50)
        before, this = random.randint(0, limit), random.randint(0, limit)
        now = 6000 + random.random() * 60
        need = random.randint(1, limit)
        wait = Window(limit, before, this, now).wait(need)
        assert wait is not None
        assert 0 <= wait <= 120
        if wait > 0:
            waited += 1
            assert _later(limit, before, this, now + wait + 1e-6).wait(need) == 0.0
            assert _later(limit, before, this, now + wait - 1e-3).wait(need) != 0.0
    assert waited > 500


def test_a_steady_stream_gets_its_limit_and_not_more():
    """10 requests a second against 60 a minute, for 10 minutes."""
    taken: dict[int, int] = {}
    admitted: list[float] = []
    for tick in range(6000):
        now = tick / 10
        minute = int(now // 60)
        window = Window(60, taken.get(minute - 1, 0), taken.get(minute, 0), now)
        if window.wait(1) == 0.0:
            taken[minute] = taken.get(minute, 0) + 1
            admitted.append(now)
    assert 580 <= len(admitted) <= 600 + 60
    busiest = max(sum(1 for a in admitted if t <= a < t + 60) for t in range(0, 540))
    assert busiest < 120


def _later(limit: int, before: int, this: int, now: float) -> Window:
    """The same takings, seen from a later minute."""
    minutes = int(now // 60) - 100
    shifted = [(before, this), (this, 0), (0, 0)][minutes]
    return Window(limit, *shifted, now)
