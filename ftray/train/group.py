"""One group of Ray Train workers from start to end, started again when a worker was lost."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import ray
import ray.train
import torch
from ray.exceptions import RayActorError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ftray import runs, storage
from ftray.cluster import Allotment, free_resources
from ftray.errors import ClusterError, OutOfMemoryError, first_line
from ftray.train.failures import cause_of, explained, is_loss, is_unplaced
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
        except (ray.train.TrainingFailedError, RayActorError) as error:
            failure = error
        cause = cause_of(failure)
        if is_unplaced(cause):
            raise _unplaced(cause, allotment, timeout_seconds) from failure
        losses += 1
        if not is_loss(cause) or losses > work.config.scaling.max_failures:
            raise explained(cause, losses) from failure
        logger.warning("a worker was lost (%s): starting again", first_line(cause))
        work = replace(work, attempt=runs.next_attempt(work.run))


def _train_once(work: Work, allotment: Allotment, timeout_seconds: float) -> None:
    # Ray's own list of checkpoints would refuse to start where we have deleted old ones.
    storage.delete(storage.join(work.run.folder, "checkpoints", "checkpoint_manager_snapshot.json"))
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(timeout_seconds)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # a report waits for a poll
    resources = {"CPU": allotment.cpus, "GPU": allotment.gpus}
    no_retries = FailureConfig(
        max_failures=0,
        controller_failure_limit=0,  # type: ignore[call-arg]  # mypy sees the old class
        max_preemption_failures=0,
    )
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
            failure_config=no_retries,
            checkpoint_config=CheckpointConfig(num_to_keep=None),
        ),
    )
    with _interruptible():
        trainer.fit()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, here and afterwards.

    Ray puts a handler in its place that stops the workers, ends the process with code 0, and is
    never taken away again.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _worker(config: dict[str, Work]) -> None:
    try:
        train(config["work"])
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"a worker's GPU ran out of memory: {first_line(error)}",
            "set train.micro_batch_size=1, train.activation_checkpointing=true,"
            " or a smaller data.max_length",
        ) from None


def _unplaced(cause: Exception, allotment: Allotment, timeout_seconds: float) -> ClusterError:
    return ClusterError(
        f"{allotment} could not be placed within {timeout_seconds:g} s: {free_resources()}"
        f" ({first_line(cause)})",
        "wait until other jobs end, or lower scaling.num_workers",
    )
