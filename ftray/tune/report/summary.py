"""A search in figures: its trials in order, what it cost, and what each knob did."""

from collections import Counter
from dataclasses import dataclass

from ftray.tune.report.importance import Importance, importance
from ftray.tune.results import SearchResult, TrialResult, TrialState
from ftray.tune.winners import Winner, Winners, ranked


@dataclass(frozen=True)
class Row:
    """One trial of the ranked table; `place` is None where there is no result to rank by."""

    place: int | None
    trial: str
    state: TrialState
    metric: float | None
    held_out: float | None
    steps: int
    tokens: int
    seconds: float
    values: dict[str, object]
    adapter: str | None  # name@version
    error: str


@dataclass(frozen=True)
class Costs:
    """Hours of GPUs, or of hosts where there are none, and those of one trial at a time.

    What one at a time would have taken is None where it was not measured.
    """

    unit: str  # GPU or host
    used_hours: float
    alone_hours: float | None
    seconds: float  # from start to end
    trial_tokens: int

    @property
    def saved_hours(self) -> float | None:
        """What training one trial at a time would have taken more; below 0: less."""
        return None if self.alone_hours is None else self.alone_hours - self.used_hours


@dataclass(frozen=True)
class Report:
    """Everything that the table, the page and report.json say."""

    name: str
    metric: str
    mode: str
    states: dict[str, int]
    rows: list[Row]
    keys: list[str]  # what the search varied
    costs: Costs
    saved_hours: float | None
    importance: Importance
    holdout: str  # what the best were measured on at the end, "" where nothing was held out
    held_out_metric: str
    alias: str | None
    notes: list[str]
    folder: str

    @property
    def best(self) -> Row | None:
        """The best trial, as the search saw it."""
        return next((row for row in self.rows if row.place == 1), None)


def summarize(result: SearchResult, winners: Winners | None) -> Report:
    """Rank the trials of a search and count what it took."""
    crowned = {winner.trial: winner for winner in winners.winners} if winners else {}
    costs = _costs(result)
    return Report(
        name=result.name,
        metric=result.metric,
        mode=result.mode,
        states=dict(Counter(trial.state for trial in result.trials)),
        rows=_rows(result, crowned),
        keys=list(result.search.space),
        costs=costs,
        saved_hours=costs.saved_hours,
        importance=importance(result.search.space, result.trials, result.mode),
        holdout=winners.holdout if winners else "",
        held_out_metric=winners.held_out_metric if winners else "",
        alias=winners.alias if winners else None,
        notes=[*(winners.notes if winners else []), *_notes(result, crowned)],
        folder=result.folder,
    )


def _rows(result: SearchResult, crowned: dict[str, Winner]) -> list[Row]:
    placed = ranked(result)
    ids = {trial.id for trial in placed}
    rows = [_row(place, trial, crowned) for place, trial in enumerate(placed, start=1)]
    return rows + [_row(None, trial, crowned) for trial in result.trials if trial.id not in ids]


def _row(place: int | None, trial: TrialResult, crowned: dict[str, Winner]) -> Row:
    winner = crowned.get(trial.id)
    return Row(
        place=place,
        trial=trial.id,
        state=trial.state,
        metric=None if place is None else trial.metric,
        held_out=winner.held_out if winner else None,
        steps=trial.steps,
        tokens=trial.tokens,
        seconds=trial.seconds,
        values=trial.values,
        adapter=winner.ref if winner else None,
        error=trial.error,
    )


def _costs(result: SearchResult) -> Costs:
    hours = (result.gpus_per_host or 1.0) / 3600
    saved = result.saved_against_solo_seconds
    return Costs(
        unit="GPU" if result.gpus_per_host else "host",
        used_hours=result.host_seconds * hours,
        alone_hours=None if saved is None else (result.host_seconds + saved) * hours,
        seconds=result.seconds,
        trial_tokens=sum(trial.tokens for trial in result.trials),
    )


def _notes(result: SearchResult, crowned: dict[str, Winner]) -> list[str]:
    """What is worth knowing before the table is believed."""
    notes = [f"the search has ended by its budget: {result.ended_by}"] if result.ended_by else []
    unended = sum(trial.state in ("running", "pending") for trial in result.trials)
    if unended:
        notes.append(f"the search has not ended: {unended} trials are left")
    measured = {name: w.held_out for name, w in crowned.items() if w.held_out is not None}
    best = ranked(result)[:1]
    if len(measured) > 1 and best and best[0].id in measured:
        choose = min if result.mode == "min" else max
        other = choose(measured, key=lambda name: measured[name])
        if other != best[0].id and measured[other] != measured[best[0].id]:
            notes.append(
                f"on what was held out, trial {other} is better than {best[0].id}, the best in the"
                " search: which of the two is better may be luck"
            )
    return notes
