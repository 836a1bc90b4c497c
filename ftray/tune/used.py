"""What the trials of a search came to, and what they took."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ftray.cluster import Allotment
from ftray.tune.floor import Figures
from ftray.tune.host import Ready
from ftray.tune.results import TrialResult


@dataclass(frozen=True)
class Used:
    """The trials, and where they trained for how long."""

    trials: list[TrialResult]
    allotment: Allotment
    host_seconds: float
    saved_seconds: float | None
    is_interrupted: bool
    ended_by: str


def saved_seconds(
    trials: Sequence[TrialResult],
    figures: Sequence[Figures],
    loaded: Sequence[Ready],
    host_seconds: float,
) -> float | None:
    """Estimate what one trial at a time would have taken more on the same hosts.

    Each trial would have loaded the base, and taken its steps in the time of a lone trial's, which
    a host measures. None where a host took too few steps for that.
    """
    lone = [one.lone_step for one in figures if one.lone_step is not None]
    if not lone or not loaded:
        return None
    start = median(ready.seconds for ready in loaded)
    alone = sum(start + trial.steps * median(lone) for trial in trials)
    return alone - host_seconds
