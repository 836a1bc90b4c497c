"""What is around Ray Tune in every search: the ledger, the table, the budget, the status."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from ray import tune

from ftray.config.run import RunConfig
from ftray.config.search import SearchConfig
from ftray.errors import DataError
from ftray.searches import Opened, change_status, read_status
from ftray.storage.patience import patient
from ftray.tune.deciders import Span
from ftray.tune.driver import Course, run_trials
from ftray.tune.hosts import Hosts
from ftray.tune.ledger import Ledger
from ftray.tune.packed.intake import Intake, Tables, Tokens
from ftray.tune.results import TrialResult
from ftray.tune.rungs import Rules
from ftray.tune.table import SearchScreen, Whole
from ftray.tune.trainable import HostedTrial
from ftray.tune.watch import Desk, open_desk

logger = logging.getLogger(__name__)

_REPORTS = 8  # of the longest trial, where nobody says how many


class Stage:
    """A search whose trials can begin, wherever they train."""

    def __init__(self, course: Course, opened: Opened) -> None:
        asked, search, span = course.asked, course.search, course.span
        self._course, self._is_new = course, opened.is_new
        self.is_interrupted = False
        self._before = read_status(search)
        self.rules = Rules(
            search.folder, span.every, asked.metric, asked.mode, asked.hosts.max_losses
        )
        self._ledger = Ledger(self.rules)
        whole = Whole(search.name, course.trials, span.longest)
        self._screen = SearchScreen(whole, asked, self._ledger)
        self._desk = Desk(
            self._ledger, asked.space, asked.budget, self._screen, self._before.seconds
        )

    @property
    def results(self) -> list[TrialResult]:
        """What the trials came to."""
        return self._ledger.results

    @property
    def ended_by(self) -> str:
        """The part of its budget that has ended the search, as budget.seconds=60; else empty."""
        return self._desk.ended_by

    def run(self, hosts: Hosts) -> None:
        """Let Ray Tune run all trials on these hosts, to the end or until Ctrl-C."""
        desk, space = self._desk, self._course.asked.space
        desk.on_leave, desk.check = hosts.leave, hosts.check
        open_desk(desk)
        trial = tune.with_parameters(
            HostedTrial,
            hosts=hosts.handles,
            space=space,
            rules=self.rules,
            newest=self._ledger.newest_states,
        )
        try:
            with self._screen.shown(), patient():
                known = run_trials(trial, self._course, is_new=self._is_new)
            if desk.failure is not None:
                raise desk.failure
            self._ledger.keep_only(known)
            self._ledger.stop_rest()  # by the budget
        except KeyboardInterrupt:
            self.is_interrupted = True
        finally:
            self._ledger.close()
        if desk.ended_by:
            logger.info("the search has ended by its budget: %s", desk.ended_by)

    def note(self, hosts: Hosts) -> float:
        """Write down how far the search is; returns the host seconds over all its starts."""
        held = self._before.host_seconds + hosts.seconds
        ended, trials = self._ledger.ended, self._course.trials
        change_status(
            self._course.search,
            lambda now: replace(now, trials=ended, total_trials=trials, host_seconds=held),
        )
        return held


def longest_of(ends: Sequence[RunConfig], tokens: Tokens) -> int:
    """Count the steps of the longest of some trials; DataError where they have no rows."""
    tables = Tables.of(tokens)
    try:
        return max(Intake(tables, end).total_steps for end in ends)
    except DataError as error:
        raise DataError(f"data.train: {error.message}", error.hint) from None


def span_of(asked: SearchConfig, base: RunConfig, longest: int) -> Span:
    """Say how long trials are, the longest of which has so many steps."""
    every = asked.every_steps or base.eval.every_steps or max(1, longest // _REPORTS)
    return Span(longest, min(every, longest))
