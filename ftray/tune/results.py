"""What a search came to: each trial's values, fate and measures, as reports and winners read it."""

from dataclasses import dataclass
from typing import Literal

from ftray.config.run import RunConfig
from ftray.config.search import SearchConfig

TrialState = Literal["finished", "stopped", "failed", "running", "pending"]


@dataclass(frozen=True)
class TrialResult:
    """One trial, as far as it went; `stopped` is by the scheduler or the budget, and no failure."""

    id: str
    values: dict[str, object]  # dotted key → value of this trial's draw
    state: TrialState
    steps: int
    tokens: int
    seconds: float  # of training that is this trial's own share
    metric: float | None  # best value of the search's metric
    curve: list[tuple[int, float]]  # (step, metric), for plots
    error: str  # one line, "" without
    state_folder: str  # where the trial's last saved slot is; "" if none


@dataclass(frozen=True)
class SearchResult:
    """A whole search, ended or not."""

    name: str
    metric: str
    mode: Literal["min", "max"]
    folder: str
    config: RunConfig
    search: SearchConfig
    trials: list[TrialResult]
    seconds: float
    host_seconds: float  # summed over hosts, from placed to given back
    hosts: int
    gpus_per_host: float  # 0: CPU
    # Host seconds that one trial at a time would have taken (each trial's steps at the step time
    # of a lone trial, measured by the host, and a start of its own) minus `host_seconds`; None
    # where it was not measured.
    saved_against_solo_seconds: float | None
    ended_by: str = ""  # the part of its budget that is spent, as budget.seconds=60
