"""The groups of Ray Train workers that train a run: started, watched, started again, resized."""

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
import ray.train
from ray.exceptions import RayActorError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

from ftray import cluster, runs, storage
from ftray.cluster import Allotment
from ftray.errors import ClusterError, OccupiedError, first_line
from ftray.runs import Run
from ftray.train.failures import cause_of, is_unplaced
from ftray.train.notice import HeedSigterm, ask_to_end, take_back
from ftray.train.retries import Again, Ended, Retries
from ftray.train.size import Size
from ftray.train.trainer import ProcessGroup, Trainer, give_back_places, in_worker
from ftray.train.watchdog import Watchdog
from ftray.train.work import Handover, Work

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 10.0  # between two looks for room to grow
_CALL_OFF_SECONDS = 10.0  # for Ray to tell that the controller was killed


def train_to_the_end(
    work: Work, size: Size, stop: threading.Event, group: "Group | None" = None
) -> None:
    """Train until the last step, starting a new group when a worker or its machine was lost.

    Each group goes on from the newest checkpoint in storage, an elastic one with as many workers
    as there is room for; the first may be there already. KeyboardInterrupt, when it is raised in
    here once, lets the workers save before it goes on its way; a second one does not wait for them.
    Who calls this in another thread than the main one sets `stop` for that.
    """
    scaling = work.config.scaling
    timeout_seconds = scaling.placement_timeout_seconds
    retries = Retries(scaling.max_failures, work.micro_batch_size)
    while True:
        try:
            group = group or Group(work.run, size)
            ended = _train_once(work, size, stop, group)
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
        work, group = _made_ready(work, again, size), None


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


def _train_once(work: Work, size: Size, stop: threading.Event, group: "Group") -> Ended:
    group.begin(work)
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


@contextmanager
def early_group(run: Run, size: Size) -> Iterator["Group"]:
    """Start a group for what is planned in the block: its processes import torch in the meantime.

    An error in the block calls the work off.
    """
    group = Group(run, size)
    try:
        yield group
    except BaseException:
        group.call_off()
        raise


class Group:
    """Workers, from their start to their end, which do what they are told to begin.

    A thread waits for Ray, so that the caller's can see to other things. In the main thread Ray
    Train would put a handler for Ctrl-C in place that ends the process.
    """

    def __init__(self, run: Run, size: Size) -> None:
        take_back(run)
        self._handover = Handover(uuid.uuid4().hex)
        self._trainer = _trainer(run, size, self._handover)
        self._has_begun = False
        self._result: Ended | Exception | None = None
        self._done = threading.Event()  # a join that Ctrl-C interrupts calls the thread stopped
        threading.Thread(target=self._run, name="training", daemon=True).start()

    def begin(self, work: Work) -> None:
        """Tell the workers what to do."""
        self._has_begun = True
        self._handover.give(work)

    def call_off(self) -> None:
        """End the workers, however far they have started, unless they were told to begin."""
        if not self._has_begun:
            self._trainer.call_off()
            self._done.wait(_CALL_OFF_SECONDS)
            self._free_places()

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
        self._free_places()
        raise self._result or RuntimeError("the thread that trains has ended without a result")

    def _free_places(self) -> None:
        if isinstance(self._result, RayActorError):  # the controller died: it cannot
            give_back_places(self._result)

    def _run(self) -> None:
        try:
            result = self._trainer.fit()
            self._result = result.return_value  # type: ignore[attr-defined]  # mypy sees the old class
        except Exception as error:  # noqa: BLE001  # a thread's edge: raised again to who waits
            self._result = error
        finally:
            self._handover.clear()
            self._done.set()


def _trainer(run: Run, size: Size, handover: Handover) -> Trainer:
    # Ray's own list of checkpoints would refuse to start where we have deleted old ones.
    storage.delete(storage.join(run.folder, "checkpoints", "checkpoint_manager_snapshot.json"))
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(size.timeout_seconds)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # a report waits for a poll
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")  # a grace may be 30 s
    resources = {"CPU": size.now.cpus, "GPU": size.now.gpus}
    watchdog = Watchdog(size.scaling.step_timeout_seconds)
    callbacks: list[Any] = [HeedSigterm(), watchdog]  # mypy sees the old class
    no_retries = FailureConfig(
        max_failures=0,
        controller_failure_limit=0,  # type: ignore[call-arg]  # mypy sees the old class
        max_preemption_failures=0,
    )
    return Trainer(
        in_worker,
        train_loop_config={"handover": handover},
        backend_config=ProcessGroup(),
        scaling_config=ScalingConfig(
            num_workers=size.now.workers,
            use_gpu=size.now.gpus > 0,
            resources_per_worker={kind: n for kind, n in resources.items() if n},
        ),
        run_config=RunConfig(
            name="checkpoints",  # so that Ray takes the folders beneath for its own
            storage_path=run.folder,
            failure_config=no_retries,
            checkpoint_config=CheckpointConfig(num_to_keep=None),
            callbacks=callbacks,
        ),
    )


def _last_step(work: Work) -> int:
    return max((line["step"] for line in runs.read_metrics(work.run)), default=0)


def _unplaced(cause: Exception, allotment: Allotment, timeout_seconds: float) -> OccupiedError:
    return OccupiedError(
        f"{allotment} could not be placed within {timeout_seconds:g} s: {cluster.free_resources()}"
        f" ({first_line(cause)})",
        "wait until other jobs end, or lower scaling.num_workers",
    )
