"""Ray Tune itself: built fresh or from its own saved state, run to the end or until Ctrl-C."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from ftray.config.search import SearchConfig
from ftray.searches import Search, tune_folder
from ftray.tune.deciders import Span, param_space, samples, scheduler, searcher
from ftray.tune.watch import Budget, Watch

logger = logging.getLogger(__name__)

_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger has it all
    "RAY_AIR_NEW_OUTPUT": "0",  # it prints, whatever verbosity says
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the table says why in a line
    "TUNE_GLOBAL_CHECKPOINT_S": "1",  # what a killed driver's trials begin again with
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours tells us of it
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


@dataclass(frozen=True)
class Course:
    """What decides how Ray Tune runs: so many trials of such a length, so many at once."""

    search: Search
    asked: SearchConfig
    span: Span
    trials: int
    at_once: int


def run_trials(trainable: Any, course: Course, *, is_new: bool) -> set[str]:
    """Run all trials; returns the ids that Ray Tune knows. KeyboardInterrupt after Ctrl-C.

    Ctrl-C ends it in good order: what the trials came to is kept, and they can be gone on with.
    """
    os.environ.update(_SETTINGS)
    path = tune_folder(course.search)
    with _told_of_interrupts() as interrupts, _quiet():
        if is_new or not tune.Tuner.can_restore(path):
            tuner = _fresh(trainable, course)
        else:
            tuner = tune.Tuner.restore(path, trainable=trainable, resume_unfinished=True)
        results = tuner.fit()
    if interrupts.count:
        raise KeyboardInterrupt
    found = [results[number] for number in range(len(results))]
    return {str(one.metrics["trial_id"]) for one in found if one.metrics}


def _fresh(trainable: Any, course: Course) -> tune.Tuner:
    asked = course.asked
    draws_by_itself = asked.searcher.kind == "random"  # and counts how many run at once
    return tune.Tuner(
        trainable,
        param_space=param_space(asked),
        tune_config=tune.TuneConfig(
            num_samples=samples(asked),
            search_alg=searcher(asked, course.at_once),
            scheduler=scheduler(asked, course.span),
            max_concurrent_trials=None if draws_by_itself else course.at_once,
            reuse_actors=True,
            trial_dirname_creator=_folder_of,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=course.search.folder,
            stop=Budget(),
            callbacks=[Watch()],
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
            failure_config=tune.FailureConfig(max_failures=0),
            verbose=0,
        ),
    )


def _folder_of(trial: Trial) -> str:
    return str(trial.trial_id)


@dataclass
class _Interrupts:
    """How often Ctrl-C was pressed, or SIGTERM came."""

    count: int = 0

    def take(self, number: int, frame: FrameType | None) -> None:
        """Let Ray Tune end in good order at first, and at once the second time."""
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt
        logger.warning("ending: all results are kept; Ctrl-C again stops at once")
        signal.raise_signal(signal.SIGUSR1)  # to Ray Tune it says what SIGINT does


@contextmanager
def _told_of_interrupts() -> Iterator[_Interrupts]:
    interrupts = _Interrupts()
    if threading.current_thread() is not threading.main_thread():  # no other may set handlers
        yield interrupts
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupts.take)
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave Ray Tune's advice on its own command out."""
    talker = logging.getLogger("ray.tune")
    before = talker.level
    talker.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        talker.setLevel(before)
