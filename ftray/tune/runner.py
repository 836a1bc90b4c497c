"""A host of ordinary trials: an actor that trains one after another, each as a run of its own."""

import asyncio
import logging
import os
import threading
import time
from dataclasses import dataclass
from pathlib import PurePosixPath
from statistics import fmean

from ftray import runs, storage
from ftray.config.base import override
from ftray.config.run import RunConfig
from ftray.errors import FtrayError, first_line
from ftray.model.folder import fetch
from ftray.model.shape import read_shape
from ftray.runs import CheckpointRecord, Metrics, Run
from ftray.searches import run_name
from ftray.storage.patience import patient
from ftray.train.fit import train_run
from ftray.train.memory import trainable
from ftray.train.status import status_kept
from ftray.train.trainer import give_back_places
from ftray.tune.host import Ready
from ftray.tune.rungs import Failed, Joined, NoRoom, Report, Rules, Told

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_REMOTE_LOOK_SECONDS = 5.0  # each look is some requests
_CLOSE_SECONDS = 60.0  # for the workers to save


@dataclass(frozen=True)
class RunnerPlan:
    """What a runner is told, once, as data; `base` says what each worker gets."""

    base: RunConfig
    search: str
    root: str
    rules: Rules


class Runner:
    """Speaks as a packed trials' host does, and has room for a single trial.

    Ray Train's workers have what training needs; the runner itself waits for them.
    """

    def __init__(self, plan: RunnerPlan) -> None:
        self._plan = plan
        self._job: _Job | None = None
        is_remote = storage.is_uri(plan.root)
        self._look_seconds = _REMOTE_LOOK_SECONDS if is_remote else _LOOK_SECONDS
        give_back_places()  # of a runner that was killed, and that this one stands in for

    async def ready(self) -> Ready:
        """It loads nothing."""
        return Ready(os.getpid(), 0.0)

    async def attach(
        self, trial_id: str, values: dict[str, object], state: str | None
    ) -> Joined | NoRoom | Failed:
        """Start a trial's run, or go on with it: `state` is the checkpoint last reported."""
        if self._job is not None and not self._job.is_over:
            if self._job.trial == trial_id:
                self._job.stop.set()
            return NoRoom()
        try:
            config = _own(self._plan, trial_id, values)
        except FtrayError as error:
            return Failed(error.message.removeprefix("override: "), error.hint)
        run = Run(self._plan.root, config.name)
        self._job = _Job(trial_id, config, run, self._plan.rules.every_steps, _step_of(state))
        shape = read_shape(fetch(config.model, self._plan.root))
        return Joined(0 if shape is None else trainable(config, shape))

    async def report(self, trial_id: str) -> Told:
        """Wait for a trial's next report."""
        while (job := self._job) is not None and job.trial == trial_id:
            if (told := await asyncio.to_thread(job.next_report)) is not None:
                return told
            await asyncio.sleep(self._look_seconds)
        return Failed("the trial has no place here")

    async def leave(self, trial_id: str) -> None:
        """Stop a trial; its run can be gone on with."""
        if self._job is not None and self._job.trial == trial_id:
            self._job.leave()

    async def close(self) -> None:
        """Stop what trains, and wait until it is saved."""
        if self._job is not None:
            self._job.leave()
            await asyncio.to_thread(self._job.join, _CLOSE_SECONDS)


class _Job:
    """A run that trains in a thread, and what was reported of it."""

    def __init__(
        self, trial: str, config: RunConfig, run: Run, every_steps: int, reported: int
    ) -> None:
        self.trial, self.stop = trial, threading.Event()
        self._config, self._run, self._every = config, run, every_steps
        self._reported = reported
        self._failed: Failed | None = None
        self._is_through = False
        self._thread = threading.Thread(target=self._train, name=f"trial {trial}", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether its workers are gone."""
        return not self._thread.is_alive()

    def leave(self) -> None:
        """Stop, unless all steps are taken: then the run ends in its own time."""
        if not self._is_through:
            self.stop.set()

    def join(self, seconds: float) -> None:
        """Wait until it has stopped."""
        self._thread.join(seconds)

    def next_report(self) -> Told | None:
        """Return the next rung's report, None where there is none yet."""
        is_over = self.is_over  # before looking: what it wrote last is seen then
        with patient():
            report = next_report(self._run, self._every, self._reported)
        if report is not None:
            self._reported, self._is_through = report.steps, report.is_last
            return report
        if not is_over:
            return None
        return self._failed or Failed("the trial was stopped")

    def _train(self) -> None:
        try:
            if not _is_done(self._run):
                _wait_until_free(self._run, self.stop)
                run = runs.open_run(self._run.root, self._config)
                with status_kept(run):
                    train_run(self._config, run, self.stop)
        except KeyboardInterrupt:
            logger.info("trial %s is stopped", self.trial)
        except FtrayError as error:
            self._failed = Failed(error.message, error.hint)
        except Exception as error:  # a thread's edge: the trial fails, not the search
            logger.critical("trial %s: %s", self.trial, first_line(error), exc_info=error)
            self._failed = Failed(first_line(error))


def next_report(run: Run, every_steps: int, reported: int) -> Report | None:
    """Return a run's first rung after a step, once its evaluation and checkpoint are there."""
    found = {record.step: record for record in reversed(runs.checkpoints(run))}
    if not any(step > reported for step in found):
        return None
    total = runs.read_status(run).total_steps or 0
    rungs = sorted(step for step in found if step % every_steps == 0 or step >= total)
    step = next((step for step in rungs if step > reported), None)
    if step is None:
        return None  # saved in between, when it was stopped
    lines = [line for line in runs.read_metrics(run) if reported < line.get("step", 0) <= step]
    return _report(run, found[step], total, lines)


def _own(plan: RunnerPlan, trial_id: str, values: dict[str, object]) -> RunConfig:
    """A trial's run: it is measured and saved at each rung, and old saves are the ledger's."""
    every = plan.rules.every_steps
    return override(
        plan.base,
        {
            **values,
            "name": run_name(plan.search, trial_id),
            "checkpoint.every_steps": every,
            "checkpoint.keep": 1_000_000,
            "eval.every_steps": every,
            "eval.patience": None,
            "eval.samples": 0,
        },
    )


def _step_of(state: str | None) -> int:
    """The step of a checkpoint, told by its folder."""
    return int(PurePosixPath(state).name.split("-")[1]) if state else 0


def _report(run: Run, record: CheckpointRecord, total: int, lines: list[Metrics]) -> Report:
    steps = [line for line in lines if "tokens" in line]
    losses = [line["loss"] for line in steps if line.get("loss") is not None]
    metrics = {"loss": fmean(losses)} if losses else {}
    for line in lines:
        if line["step"] == record.step and "eval_loss" in line:
            metrics |= {key: line[key] for key in ("eval_loss", "perplexity")}
    return Report(
        steps=record.step,
        total_steps=total,
        tokens=sum(line["tokens"] for line in steps),
        seconds=sum(line["step_seconds"] for line in steps),
        metrics=metrics,
        state=runs.checkpoint_folder(run, record.step, record.attempt),
    )


def _is_done(run: Run) -> bool:
    """Whether the run has ended before whoever was to hear of it did."""
    try:
        return runs.read_status(run).state == "succeeded"
    except FtrayError:
        return False  # it has not begun


def _wait_until_free(run: Run, stop: threading.Event) -> None:
    """Wait out the heartbeat of a runner that was killed on another machine."""
    for _ in range(int(runs.LOST_AFTER_SECONDS) + 5):
        try:
            state = runs.read_status(run).state
        except FtrayError:
            return  # it has not begun
        if state not in ("queued", "running") or stop.is_set():
            return
        time.sleep(1.0)
