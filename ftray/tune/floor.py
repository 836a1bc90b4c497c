"""The floor of a host: it trains all attached trials that have steps to do, and waits for none."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from statistics import fmean, median

from ftray.errors import FtrayError, OutOfMemoryError
from ftray.train.metrics import Line
from ftray.tune.packed.trainer import PackedTrainer
from ftray.tune.packed.trial import Trial, TrialError
from ftray.tune.rungs import Failed, Joined, NoRoom, Report, Rules, Told, state_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Figures:
    """What a host has spent its time on, in seconds, and how long a lone trial's step took."""

    steps: int
    stepping: float
    measuring: float
    saving: float
    between: float  # with trials at hand, but in none of these: what scheduling costs
    lone_step: float | None


class Floor:
    """Trials side by side on one packed trainer; one thread calls it.

    A trial trains on behind its report, up to the next one, while the search decides what becomes
    of it: so the host is never idle, and a trial that is stopped has cost less than a rung more.
    """

    def __init__(self, trainer: PackedTrainer, rules: Rules) -> None:
        self._trainer, self._rules = trainer, rules
        self._seats: dict[str, _Seat] = {}
        self._clock = _Clock()

    @property
    def is_busy(self) -> bool:
        """Whether any trial has a step to do."""
        return any(seat.is_eager for seat in self._seats.values())

    def attach(self, trial: Trial, state: str | None) -> Joined | NoRoom | Failed:
        """Give a trial a slot, fresh or as it was saved; one that is here already starts anew."""
        self.leave(trial.id)
        is_alone = not self._seats
        try:
            if not is_alone and not self._trainer.room(trial):
                return NoRoom()
            steps = self._trainer.attach(trial, state)
        except OutOfMemoryError as error:
            return Failed(error.message, error.hint) if is_alone else NoRoom()
        except FtrayError as error:
            return Failed(error.message, error.hint)
        total = self._trainer.total_steps(trial.id)
        self._seats[trial.id] = seat = _Seat(trial.id, steps, total)
        if steps >= total:
            self._report([seat])
        return Joined(self._trainer.parameters(trial.id))

    def leave(self, trial_id: str) -> None:
        """Free a trial's slot at once, whatever it was doing; who waits for it hears so."""
        seat = self._seats.pop(trial_id, None)
        if seat is None:
            return
        if not seat.is_out:
            self._trainer.detach(trial_id)
        seat.tell(Failed("the trial was stopped"))

    def expect(self, trial_id: str, waiter: "Future[Told]") -> None:
        """Let `waiter` have the trial's next report, as soon as it is there."""
        seat = self._seats.get(trial_id)
        if seat is None:
            waiter.set_result(Failed("the trial has no slot here"))
            return
        seat.await_by(waiter)

    def turn(self) -> None:
        """Take one step of every trial that has one to do, all in one batch.

        Of two early steps each is a single trial's, to measure what company saves.
        """
        seats = self._chosen([seat for seat in self._seats.values() if seat.is_eager])
        with self._clock.stepping(len(seats)):
            outcomes = self._trainer.step([seat.id for seat in seats])
        self._fail(outcomes)
        gone_on = [seat for seat in seats if not seat.is_out]
        for seat in gone_on:
            seat.stepped(_line(outcomes, seat.id))
        self._report([seat for seat in gone_on if seat.is_due(self._rules.every_steps)])

    def _chosen(self, eager: list["_Seat"]) -> list["_Seat"]:
        """Leave out whose turns have come before, so that trials evaluate together afterwards."""
        if self._clock.wants_lone_step:
            eager[0].ahead += len(eager) > 1
            return eager[:1]
        chosen = [seat for seat in eager if not seat.ahead] or eager
        for seat in eager:
            seat.ahead = max(0, seat.ahead - 1)
        return chosen

    def paused(self) -> None:
        """Say that the host had nothing to do."""
        self._clock.pause()

    def figures(self) -> Figures:
        """Return what the time went to."""
        return self._clock.figures()

    def _report(self, seats: Sequence["_Seat"]) -> None:
        measured: Mapping[str, Line | TrialError] = {}
        if seats and self._rules.metric != "loss":
            with self._clock.measuring():
                measured = self._trainer.evaluate([seat.id for seat in seats])
            self._fail(measured)
        for seat in [seat for seat in seats if not seat.is_out]:
            folder = state_folder(self._rules.folder, seat.id, seat.done)
            with self._clock.saving():
                self._trainer.save(seat.id, folder)
            seat.tell(seat.report(_numbers(measured.get(seat.id)), folder))

    def _fail(self, outcomes: Mapping[str, Line | TrialError]) -> None:
        """Free the slots of trials that failed; they tell when they are asked."""
        for trial_id, outcome in outcomes.items():
            if isinstance(outcome, TrialError):
                self._trainer.detach(trial_id)
                self._seats[trial_id].is_out = True
                self._seats[trial_id].tell(Failed(outcome.message, outcome.hint))


@dataclass(eq=False)
class _Seat:
    """One trial on the floor."""

    id: str
    done: int
    total: int
    is_out: bool = False  # it failed, and has no slot any more
    ahead: int = 0  # steps that it took while others waited
    _tokens: int = 0
    _seconds: float = 0.0
    _losses: list[float] = field(default_factory=list)
    _told: Told | None = None
    _waiter: "Future[Told] | None" = None

    @property
    def is_eager(self) -> bool:
        """Whether it has a step to do: it waits only when a report of it has not been heard."""
        return not self.is_out and self._told is None and self.done < self.total

    def is_due(self, every_steps: int) -> bool:
        """Whether this is a rung."""
        return self.done >= self.total or self.done % every_steps == 0

    def stepped(self, line: Line) -> None:
        """Count a step."""
        self.done += 1
        self._tokens += int(line["tokens"] or 0)
        self._seconds += float(line["share_seconds"] or 0.0)
        loss = line.get("loss")
        if isinstance(loss, float):  # a step that was skipped has none
            self._losses.append(loss)

    def report(self, metrics: dict[str, float], folder: str) -> Report:
        """Sum up the steps since the last report."""
        loss = {"loss": fmean(self._losses)} if self._losses else {}
        tokens, seconds = self._tokens, self._seconds
        self._tokens, self._seconds, self._losses = 0, 0.0, []
        return Report(self.done, self.total, tokens, seconds, {**loss, **metrics}, folder)

    def tell(self, told: Told) -> None:
        """Hand a report to who waits for it, or keep it."""
        if self._waiter is not None and self._waiter.set_running_or_notify_cancel():
            self._waiter.set_result(told)
            self._waiter = None
        else:
            self._told = told

    def await_by(self, waiter: "Future[Told]") -> None:
        """Take the one who waits for the next report."""
        self._waiter = waiter
        if self._told is not None:
            told, self._told = self._told, None
            self.tell(told)


_LONE_STEPS = 2


class _Clock:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        self._spent = {"stepping": 0.0, "measuring": 0.0, "saving": 0.0}
        self._steps = 0
        self._lone: list[float] = []
        self._busy = 0.0
        self._since: float | None = None

    @property
    def wants_lone_step(self) -> bool:
        """Whether too few steps of a lone trial have been timed; the first of all warms up."""
        return self._steps > 0 and len(self._lone) < _LONE_STEPS

    def stepping(self, trials: int) -> "_Stretch":
        """Time a joint step; those of a lone trial are what a search without company would take."""
        if self._since is None:
            self._since = time.monotonic()
        self._steps += 1
        return _Stretch(self, "stepping", is_lone=trials == 1 and self._steps > 1)

    def measuring(self) -> "_Stretch":
        """Time an evaluation."""
        return _Stretch(self, "measuring")

    def saving(self) -> "_Stretch":
        """Time a save."""
        return _Stretch(self, "saving")

    def add(self, what: str, seconds: float, *, is_lone: bool) -> None:
        """Count what a stretch took."""
        self._spent[what] += seconds
        if is_lone:
            self._lone.append(seconds)

    def pause(self) -> None:
        """Stop counting: no trial has a step to do."""
        if self._since is not None:
            self._busy += time.monotonic() - self._since
            self._since = None

    def figures(self) -> Figures:
        """Return the sums so far."""
        running = time.monotonic() - self._since if self._since is not None else 0.0
        return Figures(
            steps=self._steps,
            **self._spent,
            between=max(0.0, self._busy + running - sum(self._spent.values())),
            lone_step=median(self._lone) if self._lone else None,
        )


class _Stretch:
    """A block whose time is counted."""

    def __init__(self, clock: _Clock, what: str, *, is_lone: bool = False) -> None:
        self._clock, self._what, self._is_lone = clock, what, is_lone

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._clock.add(self._what, time.monotonic() - self._began, is_lone=self._is_lone)


def _line(outcomes: Mapping[str, Line | TrialError], trial_id: str) -> Line:
    outcome = outcomes[trial_id]
    return {} if isinstance(outcome, TrialError) else outcome


def _numbers(outcome: Line | TrialError | None) -> dict[str, float]:
    if outcome is None or isinstance(outcome, TrialError):
        return {}
    wanted = ("eval_loss", "perplexity")
    numbers = {key: float(outcome[key] or math.nan) for key in wanted if key in outcome}
    return {key: number for key, number in numbers.items() if math.isfinite(number)}
