"""How the driver follows Ray Tune: every event goes to the ledger, and the budget ends the search.

Ray Tune pickles its callbacks and stoppers into the search's folder, and has them back from there
when a search is resumed: ours name the desk of this process, which holds what is alive.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ray import cloudpickle, tune
from ray.exceptions import RayTaskError
from ray.tune.experiment import Trial

from ftray.config.search import BudgetConfig
from ftray.config.space import Space, drawn
from ftray.errors import FtrayError, first_line
from ftray.tune.ledger import Ledger


class Screen(Protocol):
    """Who shows a search while it goes on."""

    def reported(self, trial_id: str) -> None:
        """A trial has a new result."""

    def look(self) -> None:
        """A moment to draw; it comes several times a second."""


class Desk:
    """What the driver of a search holds while Ray Tune runs."""

    def __init__(
        self, ledger: Ledger, space: Space, budget: BudgetConfig, screen: Screen, before: float
    ) -> None:
        self.ledger, self.space, self.screen = ledger, space, screen
        self.on_leave: Callable[[str], None] = lambda trial_id: None
        self.check: Callable[[], None] = lambda: None
        self.failure: FtrayError | None = None
        self.ended_by = ""
        self._budget, self._before = budget, before
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long the search has run, over all its starts."""
        return self._before + time.monotonic() - self._began

    def is_over(self) -> bool:
        """Whether the budget is spent, or the search cannot go on."""
        try:
            self.check()
        except FtrayError as error:
            self.failure = error
        budget = self._budget
        if budget.seconds is not None and self.seconds > budget.seconds:
            self.ended_by = f"budget.seconds={budget.seconds:g}"
        if budget.tokens is not None and self.ledger.tokens >= budget.tokens:
            self.ended_by = f"budget.tokens={budget.tokens}"
        return self.failure is not None or bool(self.ended_by)


_OPEN: list[Desk] = []


def open_desk(desk: Desk) -> None:
    """Let callbacks and stoppers of this process find this desk."""
    _OPEN[:] = [desk]


def _desk() -> Desk:
    return _OPEN[0]


class Watch(tune.Callback):
    """Writes what happens to trials into the ledger."""

    def on_trial_start(  # type: ignore[override]  # Ray Tune gives no more than these
        self, iteration: int, trials: list[Trial], trial: Trial
    ) -> None:
        """A trial has its process."""
        desk = _desk()
        desk.ledger.began(trial.trial_id, _values(trial))
        desk.screen.reported(trial.trial_id)

    def on_trial_result(  # type: ignore[override]  # as above
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: Mapping[str, Any],
    ) -> None:
        """A trial has come to a rung."""
        desk = _desk()
        desk.ledger.reported(trial.trial_id, _values(trial), result)
        if not result.get("done"):  # else its end is told in a moment
            desk.screen.reported(trial.trial_id)

    def on_trial_complete(  # type: ignore[override]  # as above
        self, iteration: int, trials: list[Trial], trial: Trial
    ) -> None:
        """A trial was stopped, or has taken all its steps."""
        desk = _desk()
        desk.on_leave(trial.trial_id)
        if not desk.ledger.has(trial.trial_id):
            return  # stopped before it began
        last = trial.last_result or {}
        is_through = last.get("step", -1) >= last.get("total_steps", 0)
        desk.ledger.over(trial.trial_id, "finished" if is_through else "stopped")
        desk.screen.reported(trial.trial_id)

    def on_trial_error(  # type: ignore[override]  # as above
        self, iteration: int, trials: list[Trial], trial: Trial
    ) -> None:
        """A trial has failed; the others go on."""
        desk = _desk()
        desk.on_leave(trial.trial_id)
        if not desk.ledger.has(trial.trial_id):
            desk.ledger.began(trial.trial_id, _values(trial))
        desk.ledger.over(trial.trial_id, "failed", _why(trial))
        desk.screen.reported(trial.trial_id)

    def on_step_end(  # type: ignore[override]  # as above
        self, iteration: int, trials: list[Trial]
    ) -> None:
        """Ray Tune has handled an event, or waited for one."""
        _desk().screen.look()


class Budget(tune.Stopper):
    """Ends the search when its budget is spent."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No single trial is ended by it."""
        return False

    def stop_all(self) -> bool:
        """Whether all trials are to end."""
        return _desk().is_over()


def _values(trial: Trial) -> dict[str, object]:
    return drawn(_desk().space, trial.config)


def _why(trial: Trial) -> str:
    """The first line of what made a trial fail, out of Ray's wrapper.

    Ray Tune's own `get_pickled_error` looks in the storage, where the error is put later.
    """
    path = trial.pickled_error_file
    if path is None or not Path(path).exists():
        return "Ray Tune does not say why"
    error: Exception = cloudpickle.loads(Path(path).read_bytes())
    return first_line(error.cause if isinstance(error, RayTaskError) else error)
