"""What the failure of a training group means: who began it, whether to try again, what to say."""

import ray.train
from ray.exceptions import OutOfMemoryError as RayOutOfMemory
from ray.exceptions import RayActorError

from ftray.errors import FtrayError, OutOfMemoryError, TrainError, first_line
from ftray.train.pulse import HungError


def cause_of(failure: Exception) -> Exception:
    """Return what began a failure that Ray Train raised.

    Of several workers' errors it is a reason given, else a lost worker, else what is left: when
    one worker stops, the others fail in their next collective, and theirs is never the cause.
    """
    match failure:
        case ray.train.WorkerGroupError():
            return _first_of([_unwrapped(error) for error in failure.worker_failures.values()])
        case ray.train.ControllerError():
            return failure.controller_failure
        case _:
            return failure  # a machine was taken back, or Ray's controller died


def is_loss(cause: Exception) -> bool:
    """Whether a worker or its machine was lost, so that the same work may well succeed.

    A collective that failed on every worker we heard of is one: the others notice a dead machine
    at once, Ray only after some seconds without its heartbeat.
    """
    return (
        isinstance(cause, RayActorError | HungError)
        or type(cause).__name__ in _LOSSES
        or _is_from_a_collective(cause)
    )


def is_preemption(cause: Exception) -> bool:
    """Whether a machine was taken back before its workers had saved."""
    return isinstance(cause, ray.train.PreemptionError)


def is_out_of_memory(cause: Exception) -> bool:
    """Whether a worker's GPU or its machine had too little memory."""
    return isinstance(cause, OutOfMemoryError | RayOutOfMemory)


def is_unplaced(failure: Exception) -> bool:
    """Whether the workers were never placed: the cluster has no room for them now."""
    return type(failure).__name__ in _UNPLACED


def explained(cause: Exception, losses: int) -> Exception:
    """Turn what Ray reports into an error that a user can act on; a bug stays what it is."""
    match cause:
        case FtrayError() if not is_loss(cause):
            return cause
        case RayOutOfMemory():
            return OutOfMemoryError(
                f"a worker's machine ran out of memory: {first_line(cause)}",
                "lower scaling.num_workers, train.micro_batch_size or data.max_length",
            )
        case _ if is_loss(cause):
            return TrainError(
                f"workers were lost {losses} times, last: {first_line(cause)}",
                "run the same command again: it goes on from the newest checkpoint",
            )
        case _:
            return cause


# Ray exports these classes nowhere.
_LOSSES = {"WorkerGroupStartupFailedError", "WorkerHealthCheckTimeoutError"}
_UNPLACED = {"WorkerGroupStartupTimeoutError", "InsufficientClusterResourcesError"}


def _first_of(errors: list[Exception]) -> Exception:
    ours = [error for error in errors if isinstance(error, FtrayError | RayOutOfMemory)]
    lost = [error for error in errors if isinstance(error, RayActorError)]
    first_hand = [error for error in errors if not _is_from_a_collective(error)]
    return [*ours, *lost, *first_hand, *errors][0]


def _unwrapped(error: Exception) -> Exception:
    """Return what a worker raised, out of Ray's own wrappers, which keep it as an attribute.

    The text of one is the worker's traceback, which its error has lost on the way: a bug tells it.
    """
    if isinstance(error, RayActorError | FtrayError):
        return error
    inner = [value for value in vars(error).values() if isinstance(value, Exception)]
    if not inner:
        return error
    cause = _unwrapped(inner[0])
    if type(error).__name__ == "UserExceptionWithTraceback" and not isinstance(cause, FtrayError):
        cause.add_note(f"in a worker:\n{error}")
    return cause


def _is_from_a_collective(error: Exception) -> bool:
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    is_said = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return is_said or any(kind.__name__ == "DistError" for kind in type(error).__mro__)
