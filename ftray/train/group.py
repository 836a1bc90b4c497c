"""The groups of Ray Train workers that train a run: started, watched, started again, resized."""

import logging
import os
import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
import ray.train
import torch
from ray.exceptions import RayActorError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

from ftray import cluster, runs, storage
from ftray.cluster import Allotment
from ftray.errors import ClusterError, OutOfMemoryError, first_line
from ftray.train.failures import cause_of, is_unplaced
from ftray.train.loop import Work, train
from ftray.train.notice import HeedSigterm, ask_to_end, take_back
from ftray.train.retries import Again, Ended, Retries
from ftray.train.size import Size
from ftray.train.trainer import Trainer, give_back_places
from ftray.train.watchdog import Watchdog

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 10.0  # between two looks for room to grow


def train_to_the_end(work: Work, allotment: Allotment, stop: threading.Event) -> None:
    """Train until the last step, starting a new group when a worker or its machine was lost.

    Each group goes on from the newest checkpoint in storage, an elastic one with as many workers
    as there is room for. KeyboardInterrupt, when it is raised in here once, lets the workers save
    before it goes on its way; a second one does not wait for them. Who calls this in another
    thread than the main one sets `stop` for that.
    """
    scaling = work.config.scaling
    timeout_seconds = scaling.placement_timeout_seconds
    retries = Retries(scaling.max_failures, work.micro_batch_size)
    size = Size(scaling, allotment, timeout_seconds)
    while True:
        try:
            ended = _train_once(work, size, stop)
            if ended.why == "finished":
                return
            again = retries.after_end(ended)
        except (ray.train.TrainingFailedError, RayActorError) as failure:
            if is_unplaced(cause := cause_of(failure)):
                before = size.now
                if not size.shrink():
                    raise _unplaced(cause, before, timeout_seconds) from None
                again = Again(f"{before} could not be placed", 0.0, work.micro_batch_size)
            else:
                again = retries.after_failure(failure, _last_step(work))
        work = _made_ready(work, again, size)


def _made_ready(work: Work, again: Again, size: Size) -> Work:
    """Say why a group is started again, wait, and see how many workers it can have."""
    before = size.now
    logger.warning("%s: starting again", again.why)
    runs.change_status(work.run, lambda status: replace(status, note=again.why))
    time.sleep(again.wait_seconds)
    if not (machines := cluster.nodes()):
        raise ClusterError(f"Ray is gone: {again.why}", "run the same command again: it goes on")
    size.fit(machines)
    if size.now != before:
        logger.warning("going on with %s instead of %s", size.now, before)
        work = replace(work, threads=size.now.threads)
    attempt = runs.next_attempt(work.run)
    return replace(work, attempt=attempt, micro_batch_size=again.micro_batch_size)


def _train_once(work: Work, size: Size, stop: threading.Event) -> Ended:
    take_back(work.run)
    group = _Group(_trainer(work, size.now, size.timeout_seconds))
    try:
        return group.ended(lambda: _grow(work, size), stop)
    except KeyboardInterrupt:
        logger.warning("saving after this step, then pausing; Ctrl-C again stops at once")
        ask_to_end(work.run)
        try:
            group.ended(lambda: None, threading.Event())
        except (ray.train.TrainingFailedError, RayActorError) as failure:
            said = first_line(cause_of(failure))
            logger.warning("no checkpoint could be saved (%s): the one before holds", said)
        raise


def _grow(work: Work, size: Size) -> None:
    if size.could_grow(cluster.nodes()):
        logger.info("there is room for more workers: saving, then going on with them")
        ask_to_end(work.run)


class _Group:
    """A group at work. Its thread waits for Ray, so that the caller's can see to other things.

    In the main thread Ray Train would put a handler for Ctrl-C in place that ends the process.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._result: Ended | Exception | None = None
        self._done = threading.Event()  # a join that Ctrl-C interrupts calls the thread stopped
        threading.Thread(target=self._run, name="training", daemon=True).start()

    def ended(self, look: Callable[[], None], stop: threading.Event) -> Ended:
        """Wait for the workers, and look around in the meantime; raises what made them fail.

        KeyboardInterrupt when `stop` is set.
        """
        looked = time.monotonic()
        while not self._done.wait(0.2):
            if stop.is_set():
                raise KeyboardInterrupt
            if time.monotonic() - looked > _LOOK_SECONDS:
                look()
                looked = time.monotonic()
        if isinstance(self._result, Ended):
            return self._result
        if isinstance(self._result, RayActorError):
            give_back_places(self._result)
        raise self._result or RuntimeError("the thread that trains has ended without a result")

    def _run(self) -> None:
        try:
            result = self._trainer.fit()
            self._result = result.return_value  # type: ignore[attr-defined]  # mypy sees the old class
        except Exception as error:  # noqa: BLE001  # a thread's edge: raised again to who waits
            self._result = error
        finally:
            self._done.set()


def _trainer(work: Work, allotment: Allotment, timeout_seconds: float) -> Trainer:
    # Ray's own list of checkpoints would refuse to start where we have deleted old ones.
    storage.delete(storage.join(work.run.folder, "checkpoints", "checkpoint_manager_snapshot.json"))
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(timeout_seconds)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # a report waits for a poll
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")  # a grace may be 30 s
    resources = {"CPU": allotment.cpus, "GPU": allotment.gpus}
    watchdog = Watchdog(work.config.scaling.step_timeout_seconds)
    callbacks: list[Any] = [HeedSigterm(), watchdog]  # mypy sees the old class
    no_retries = FailureConfig(
        max_failures=0,
        controller_failure_limit=0,  # type: ignore[call-arg]  # mypy sees the old class
        max_preemption_failures=0,
    )
    return Trainer(
        _worker,  # type: ignore[arg-type]  # what it returns comes back, though the type says not
        train_loop_config={"work": pickle.dumps(work)},  # the controller needs no torch to pass on
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
            callbacks=callbacks,
        ),
    )


def _worker(config: dict[str, bytes]) -> Ended:
    work: Work = pickle.loads(config["work"])
    try:
        return train(work)
    except torch.OutOfMemoryError as error:
        # the rest is advice on torch's own settings
        asked = ". ".join(first_line(error).split(". ")[:2])
        raise OutOfMemoryError(
            f"a worker's GPU ran out of memory: {asked}",
            "set train.micro_batch_size=1, train.activation_checkpointing=true,"
            " or a smaller data.max_length",
        ) from None


def _last_step(work: Work) -> int:
    return max((line["step"] for line in runs.read_metrics(work.run)), default=0)


def _unplaced(cause: Exception, allotment: Allotment, timeout_seconds: float) -> ClusterError:
    return ClusterError(
        f"{allotment} could not be placed within {timeout_seconds:g} s: {cluster.free_resources()}"
        f" ({first_line(cause)})",
        "wait until other jobs end, or lower scaling.num_workers",
    )
