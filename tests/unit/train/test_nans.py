"""What becomes of a step whose loss is no number."""

from math import inf, nan
from typing import Literal

import pytest

from ftray.config.run import TrainConfig
from ftray.errors import TrainError
from ftray.train.nans import Nans


def nans(policy: Literal["stop", "skip", "rewind"]) -> Nans:
    return Nans(TrainConfig(epochs=1, on_nan=policy))


def test_finite_numbers_update_the_weights() -> None:
    assert nans("stop").decide(1, 2.5, 0.1) == "update"


@pytest.mark.parametrize(("loss", "norm", "what"), [(nan, 1.0, "loss"), (1.0, inf, "gradient")])
def test_stop_names_the_step_and_the_learning_rate(loss: float, norm: float, what: str) -> None:
    with pytest.raises(TrainError, match=f"the {what}.* became (nan|inf) at step 7") as caught:
        nans("stop").decide(7, loss, norm)
    assert "train.learning_rate" in caught.value.hint


def test_skip_leaves_batches_out_until_no_batch_is_good() -> None:
    policy = nans("skip")
    assert [policy.decide(step, nan, nan) for step in range(10)] == ["skip"] * 10
    with pytest.raises(TrainError, match=r"train\.on_nan=skip did not help"):
        policy.decide(10, nan, nan)


def test_one_good_step_makes_skipping_begin_anew() -> None:
    policy = nans("skip")
    for step in range(50):
        assert policy.decide(step, nan if step % 5 else 1.0, 1.0) == (
            "skip" if step % 5 else "update"
        )


def test_rewind_goes_back_to_one_checkpoint_three_times_at_most() -> None:
    policy = nans("rewind")
    assert [policy.decide(step, nan, nan) for step in range(3)] == ["rewind"] * 3
    policy.saved()
    assert policy.decide(4, inf, 1.0) == "rewind"
    for step in (5, 6):
        policy.decide(step, nan, nan)
    with pytest.raises(TrainError, match=r"train\.on_nan=rewind did not help"):
        policy.decide(7, nan, nan)
