"""What trials and their hosts say to each other; no torch and no Ray here."""

from dataclasses import dataclass, field

from ftray import storage
from ftray.config.search import Way


@dataclass(frozen=True)
class Rules:
    """What holds for every trial of a search."""

    folder: str  # of the search
    every_steps: int  # between two reports
    metric: str
    mode: Way
    max_losses: int  # of hosts that a trial survives


@dataclass(frozen=True)
class Joined:
    """A trial has a slot, and so many parameters to train."""

    parameters: int


@dataclass(frozen=True)
class NoRoom:
    """The host is full: a slot may be free soon."""


@dataclass(frozen=True)
class Failed:
    """The trial cannot go on; others can."""

    message: str
    hint: str = ""


@dataclass(frozen=True)
class Report:
    """What a trial came to at a rung; tokens and seconds count from the report before."""

    steps: int
    total_steps: int
    tokens: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    state: str = ""  # the folder where the trial was saved after this step

    @property
    def is_last(self) -> bool:
        """Whether all steps are taken."""
        return self.steps >= self.total_steps


Told = Report | Failed


def trial_folder(search: str, trial_id: str) -> str:
    """Return where a trial's record and states are."""
    return storage.join(search, "trials", trial_id)


def state_folder(search: str, trial_id: str, step: int) -> str:
    """Return where a trial is saved after a step."""
    return storage.join(trial_folder(search, trial_id), f"step-{step:06d}")
