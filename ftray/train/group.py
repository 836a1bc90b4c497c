"""One group of Ray Train workers from start to end, and what its failure means for the run."""

import logging
import os
from dataclasses import replace

import ray
import ray.train
import torch
from ray.exceptions import OutOfMemoryError as RayOutOfMemory
from ray.exceptions import RayActorError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ftray import runs, storage
from ftray.cluster import Allotment, free_resources
from ftray.errors import ClusterError, FtrayError, OutOfMemoryError, TrainError
from ftray.train.loop import Work, train

logger = logging.getLogger(__name__)


def train_to_the_end(work: Work, allotment: Allotment, timeout_seconds: float) -> None:
    """Train until the last step, starting a new group when a worker or its machine was lost.

    Only losses are tried again, at most `scaling.max_failures` times: a mistake or too little
    memory would only come back. Each group goes on from the newest checkpoint in storage.
    """
    losses = 0
    while True:
        try:
            _train_once(work, allotment, timeout_seconds)
            return
        except ray.train.ControllerError as error:
            raise ClusterError(
                f"{allotment} could not be placed within {timeout_seconds:g} s: {free_resources()}"
                f" ({_first_line(error.controller_failure)})",
                "wait until other jobs end, or lower scaling.num_workers",
            ) from error
        except ray.train.WorkerGroupError as error:
            cause = _cause(error.worker_failures)
            losses += 1
            if not isinstance(cause, RayActorError) or losses > work.config.scaling.max_failures:
                raise _translated(cause, losses) from error
            logger.warning("a worker was lost (%s): starting again", _first_line(cause))
        work = replace(work, attempt=runs.next_attempt(work.run))


def _train_once(work: Work, allotment: Allotment, timeout_seconds: float) -> None:
    # Ray's own list of checkpoints would refuse to start where we have deleted old ones.
    storage.delete(storage.join(work.run.folder, "checkpoints", "checkpoint_manager_snapshot.json"))
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(timeout_seconds)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # a report waits for a poll
    resources = {"CPU": allotment.cpus, "GPU": allotment.gpus}
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"work": work},
        scaling_config=ScalingConfig(
            num_workers=allotment.workers,
            use_gpu=allotment.gpus > 0,
            resources_per_worker={kind: n for kind, n in resources.items() if n},
        ),
        run_config=RunConfig(
            name="checkpoints",  # so that Ray takes the folders beneath for its own
            storage_path=work.run.folder,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),  # type: ignore[call-arg]  # mypy sees the old class
            checkpoint_config=CheckpointConfig(num_to_keep=None),
        ),
    )
    trainer.fit()


def _worker(config: dict[str, Work]) -> None:
    try:
        train(config["work"])
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"a worker's GPU ran out of memory: {_first_line(error)}",
            "set train.micro_batch_size=1, train.activation_checkpointing=true,"
            " or a smaller data.max_length",
        ) from None


def _cause(failures: dict[int, Exception]) -> Exception:
    """Pick the failure that began it: a reason given, then a lost worker, then what is left.

    When one worker stops, the others fail in their next collective: theirs is never the cause.
    """
    errors = [_unwrapped(error) for error in failures.values()]
    ours = [error for error in errors if isinstance(error, FtrayError | RayOutOfMemory)]
    lost = [error for error in errors if isinstance(error, RayActorError)]
    first_hand = [error for error in errors if not _is_from_a_collective(error)]
    return [*ours, *lost, *first_hand, *errors][0]


def _unwrapped(error: Exception) -> Exception:
    """Return what a worker raised, out of Ray's own wrappers, which keep it as an attribute."""
    if isinstance(error, RayActorError | FtrayError):
        return error
    inner = [value for value in vars(error).values() if isinstance(value, Exception)]
    return _unwrapped(inner[0]) if inner else error


def _is_from_a_collective(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("gloo", "NCCL", "Connection closed by peer")
    )


def _translated(cause: Exception, losses: int) -> Exception:
    match cause:
        case RayActorError():
            return TrainError(
                f"workers were lost {losses} times, last: {_first_line(cause)}",
                "run the same command again: it goes on from the newest checkpoint",
            )
        case RayOutOfMemory():
            return OutOfMemoryError(
                f"a worker's machine ran out of memory: {_first_line(cause)}",
                "lower scaling.num_workers, train.micro_batch_size or data.max_length",
            )
        case _:
            return cause


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
