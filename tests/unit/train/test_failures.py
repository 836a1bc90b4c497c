"""What a failed group means, from the exceptions that Ray really raises."""

import pickle

import pytest
import ray.train
import torch.distributed as dist
from ray.exceptions import OutOfMemoryError as RayOutOfMemory
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)

from ftray.errors import DataError, OutOfMemoryError, TrainError
from ftray.train.failures import cause_of, explained, is_loss, is_unplaced

TOLD = DataError("train.jsonl line 7: no 'messages'", "set data.format=prompt_completion")
BUG = ZeroDivisionError("division by zero")
COLLATERAL = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")
KILLED = RayActorError(error_msg="it was killed")
LOST = WorkerHealthCheckFailedError("worker 1 is gone", failure=KILLED)


def group(*failures: Exception) -> ray.train.WorkerGroupError:
    """As it arrives from Ray's controller, in another process."""
    error = ray.train.WorkerGroupError("a worker failed", dict(enumerate(failures)))
    arrived: ray.train.WorkerGroupError = pickle.loads(pickle.dumps(error))
    return arrived


@pytest.mark.parametrize(
    ("failures", "kind"),
    [
        ((COLLATERAL, TOLD), DataError),
        ((LOST, TOLD), DataError),
        ((COLLATERAL, LOST), RayActorError),
        ((COLLATERAL, BUG), ZeroDivisionError),
        ((UserExceptionWithTraceback(TOLD, "Traceback"), COLLATERAL), DataError),
        ((UserExceptionWithTraceback(BUG, "Traceback"),), ZeroDivisionError),
        ((COLLATERAL, COLLATERAL), RuntimeError),
    ],
)
def test_the_cause_is_the_failure_that_began_it(
    failures: tuple[Exception, ...], kind: type[Exception]
) -> None:
    assert isinstance(cause_of(group(*failures)), kind)


def test_an_error_for_the_user_arrives_with_its_message_and_hint() -> None:
    error = explained(cause_of(group(COLLATERAL, TOLD)), 1)
    assert isinstance(error, DataError)
    assert (error.message, error.hint, error.exit_code) == (TOLD.message, TOLD.hint, 3)


@pytest.mark.parametrize(
    "failure",
    [
        group(LOST),
        group(COLLATERAL, COLLATERAL),  # a machine died: Ray has not noticed yet
        group(dist.DistBackendError("NCCL communicator was aborted on rank 1")),
        group(WorkerHealthCheckTimeoutError("no answer for 600 s")),
        ray.train.ControllerError(WorkerGroupStartupFailedError("a worker died at its start")),
        RayActorError(error_msg="the controller died"),
    ],
)
def test_what_was_lost_is_worth_another_try(failure: Exception) -> None:
    cause = cause_of(failure)
    assert is_loss(cause)
    error = explained(cause, losses=4)
    assert isinstance(error, TrainError)
    assert "workers were lost 4 times" in error.message
    assert "same command again" in error.hint


@pytest.mark.parametrize("cause", [TOLD, BUG, RayOutOfMemory("killed"), MemoryError()])
def test_mistakes_and_too_little_memory_are_not_tried_again(cause: Exception) -> None:
    assert not is_loss(cause)


def test_too_little_memory_says_what_to_lower() -> None:
    error = explained(cause_of(group(RayOutOfMemory("8 GiB used\nby worker 1"))), 1)
    assert isinstance(error, OutOfMemoryError)
    assert "8 GiB used" in error.message
    assert "by worker 1" not in error.message
    assert "train.micro_batch_size" in error.hint


def test_a_bug_stays_what_it_is_and_tells_where_in_the_worker_it_was() -> None:
    wrapped = UserExceptionWithTraceback(ZeroDivisionError("by zero"), "loop.py line 7, in step")
    error = explained(cause_of(group(wrapped)), 1)
    assert isinstance(error, ZeroDivisionError)
    assert error.__notes__ == ["in a worker:\nloop.py line 7, in step"]


def test_workers_that_found_no_place_are_told_from_workers_that_were_lost() -> None:
    cause = cause_of(ray.train.ControllerError(WorkerGroupStartupTimeoutError(2)))
    assert is_unplaced(cause)
    assert not is_loss(cause)
