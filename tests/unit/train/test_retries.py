"""When a group of workers is started again, with what, and when a run gives up."""

import pytest
import ray.train
from ray.exceptions import OutOfMemoryError as RayOutOfMemory
from ray.exceptions import RayActorError

from ftray.errors import DataError, OutOfMemoryError, TrainError
from ftray.train.pulse import HungError
from ftray.train.retries import Ended, Retries

KILLED = RayActorError(error_msg="it was killed")


def test_losses_are_waited_out_longer_and_longer_and_counted() -> None:
    retries = Retries(max_failures=3, micro_batch_size=4)
    found = [retries.after_failure(KILLED, step=5) for _ in range(3)]
    assert [again.wait_seconds for again in found] == [1.0, 2.0, 4.0]
    assert found[1].why == "the controller was lost (it was killed), loss 2 of at most 3"
    with pytest.raises(TrainError, match="workers were lost 4 times"):
        retries.after_failure(KILLED, step=5)


def test_a_run_that_gets_on_in_between_waits_only_shortly() -> None:
    retries = Retries(max_failures=9, micro_batch_size=4)
    assert {retries.after_failure(KILLED, step).wait_seconds for step in (0, 5, 9)} == {1.0}


def test_a_wait_is_never_longer_than_a_minute() -> None:
    retries = Retries(max_failures=99, micro_batch_size=1)
    assert max(retries.after_failure(KILLED, 0).wait_seconds for _ in range(20)) == 60.0


@pytest.mark.parametrize(
    "failure", [RayOutOfMemory("8 GiB used"), OutOfMemoryError("a worker's GPU ran out of memory")]
)
def test_too_little_memory_is_tried_once_with_half_the_micro_batch(failure: Exception) -> None:
    retries = Retries(max_failures=0, micro_batch_size=4)
    again = retries.after_failure(failure, step=0)
    assert again.micro_batch_size == 2
    assert "train.micro_batch_size=2 instead of 4" in again.why
    with pytest.raises(OutOfMemoryError) as caught:
        retries.after_failure(failure, step=0)
    assert "ran out of memory" in caught.value.message


def test_a_micro_batch_of_one_cannot_be_halved() -> None:
    with pytest.raises(OutOfMemoryError):
        Retries(max_failures=3, micro_batch_size=1).after_failure(RayOutOfMemory("full"), 0)


def test_a_hung_group_is_a_loss_and_says_who_hung() -> None:
    failure = ray.train.ControllerError(HungError("step 7 hangs since 9 s: worker 1 (pid 5)"))
    again = Retries(max_failures=1, micro_batch_size=1).after_failure(failure, step=6)
    assert again.why.startswith("a worker was lost (step 7 hangs since 9 s: worker 1 (pid 5))")


def test_preempted_workers_are_not_counted_as_lost() -> None:
    retries = Retries(max_failures=0, micro_batch_size=1)
    for step in range(30):
        assert retries.after_end(Ended("preempted", step)).wait_seconds == 0
    assert retries.after_end(Ended("asked", 29)).wait_seconds == 0


def test_preemptions_without_a_step_in_between_end_at_some_time() -> None:
    retries = Retries(max_failures=0, micro_batch_size=1)
    for _ in range(10):
        retries.after_end(Ended("preempted", 3))
    with pytest.raises(TrainError, match="preempted 11 times at step 3"):
        retries.after_end(Ended("preempted", 3))


def test_a_mistake_ends_the_run_at_once_without_a_wrapper() -> None:
    told = DataError("train.jsonl line 7: no 'messages'")
    failure = ray.train.WorkerGroupError("a worker failed", {0: told})
    with pytest.raises(DataError) as caught:
        Retries(max_failures=3, micro_batch_size=1).after_failure(failure, 0)
    assert caught.value is told
    assert caught.value.__suppress_context__
