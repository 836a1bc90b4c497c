"""When a group of workers counts as hung, and who is named."""

import pytest

from ftray.train.pulse import Limits, Pulse, Seen, begin, feel, hung


def seen(worker: str, doing: str, seconds: float, *, limit: float = 10, ago: float = 1) -> Seen:
    return Seen(worker, Pulse(doing, seconds, limit), ago)


def test_nobody_hangs_while_one_worker_may_still_take_its_time() -> None:
    waits, reads = seen("a", "step 3", 60), seen("b", "step 3 (waiting for data)", 60, limit=600)
    assert hung([waits, reads], silent_after=5) is None


def test_a_stopped_worker_is_named_because_it_does_not_answer() -> None:
    stopped, waits = seen("a", "step 3", 1, ago=15), seen("b", "step 3", 15)
    error = hung([waits, stopped], silent_after=5)
    assert error is not None
    assert error.message == "step 3 hangs since 16 s: a gave no answer"


def test_a_stopped_worker_has_no_good_reason_once_another_waits_for_it() -> None:
    stopped = seen("a", "step 3 (waiting for data)", 1, limit=600, ago=15)
    assert hung([seen("b", "step 3", 9), stopped], silent_after=5) is None
    error = hung([seen("b", "step 3", 15), stopped], silent_after=5)
    assert error is not None
    assert error.message == "step 3 (waiting for data) hangs since 16 s: a gave no answer"
    assert hung([stopped], silent_after=5) is None  # alone it may be reading a large file


def test_workers_that_wait_for_each_other_are_all_named() -> None:
    error = hung([seen("a", "step 3", 14), seen("b", "step 3", 15)], silent_after=5)
    assert error is not None
    assert error.message == "step 3 hangs since 15 s: a, b got no further"


def test_no_workers_do_not_hang() -> None:
    assert hung([], silent_after=5) is None


def test_the_first_step_and_all_but_steps_may_take_longer() -> None:
    limits = Limits(4.0)
    assert (limits.step, limits.other) == (40, 40)
    limits.measured(0.1)
    assert (limits.step, limits.other) == (4, 40)


@pytest.mark.parametrize(("steps", "limit"), [([1.0] * 9, 300), ([100.0, 90.0, 1000.0], 2000)])
def test_without_a_setting_measured_steps_decide(steps: list[float], limit: float) -> None:
    limits = Limits(None)
    assert limits.step == limits.other == 3600
    for seconds in steps:
        limits.measured(seconds)
    assert limits.step == limit


def test_a_pulse_tells_what_was_begun_last() -> None:
    begin("step 1", 5.0)
    pulse = feel()
    assert (pulse.doing, pulse.limit) == ("step 1", 5.0)
    assert 0 <= pulse.seconds < 5
