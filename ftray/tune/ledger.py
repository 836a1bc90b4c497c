"""The ledger of a search: what each trial came to, written as it happens, and which states stay."""

import logging
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from ftray import storage
from ftray.config.search import Way
from ftray.errors import StorageError
from ftray.records import Record, encode, read_record
from ftray.tune.results import TrialResult, TrialState
from ftray.tune.rungs import Rules, trial_folder

logger = logging.getLogger(__name__)

_RECORD = "trial.json"
_NEWEST = 3  # states: a copy or a pause may look back to the one before the last


@dataclass(frozen=True, kw_only=True)
class TrialRecord(Record):
    """A trial's result, and the steps after which it is saved."""

    result: TrialResult
    saved: dict[str, str] = field(default_factory=dict)  # step → folder


class Ledger:
    """Every trial of a search by its id; one thread writes it."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._records: dict[str, TrialRecord] = {}
        self._deleting = ThreadPoolExecutor(1, "old-states")
        for trial_id in storage.names(storage.join(rules.folder, "trials")):
            path = storage.join(trial_folder(rules.folder, trial_id), _RECORD)
            if (record := read_record(path, TrialRecord)) is not None:
                self._records[trial_id] = record

    @property
    def results(self) -> list[TrialResult]:
        """All trials in the order in which they began."""
        return [record.result for record in self._records.values()]

    @property
    def tokens(self) -> int:
        """Training tokens of all trials together."""
        return sum(result.tokens for result in self.results)

    @property
    def ended(self) -> int:
        """How many trials are over."""
        return sum(result.state in ("finished", "stopped", "failed") for result in self.results)

    def has(self, trial_id: str) -> bool:
        """Whether the trial is known."""
        return trial_id in self._records

    @property
    def newest_states(self) -> dict[str, str]:
        """Where each trial is saved as it was last."""
        return {
            trial_id: record.saved[max(record.saved, key=int)]
            for trial_id, record in self._records.items()
            if record.saved
        }

    def began(self, trial_id: str, values: dict[str, object]) -> None:
        """Note that a trial runs, for the first time or again."""
        known = self._records.get(trial_id)
        if known is None:
            fresh = TrialResult(trial_id, values, "running", 0, 0, 0.0, None, [], "", "")
            known = TrialRecord(result=fresh)
        self._write(replace(known, result=replace(known.result, state="running", error="")))

    def reported(self, trial_id: str, values: dict[str, object], line: Mapping[str, Any]) -> None:
        """Take a report; steps that a lost host makes it repeat replace those of before."""
        record, step = self._records[trial_id], int(line["step"])
        before, metric = record.result, float(line.get(self._rules.metric, math.nan))
        curve = [(at, one) for at, one in before.curve if at < step]
        if math.isfinite(metric):
            curve.append((step, metric))
        saved = {at: folder for at, folder in record.saved.items() if int(at) < step}
        if line.get("state"):
            saved[str(step)] = line["state"]
        best = best_of(curve, self._rules.mode)
        result = replace(
            before,
            values=values,
            steps=step,
            tokens=before.tokens + int(line["new_tokens"]),
            seconds=before.seconds + float(line["new_seconds"]),
            metric=None if best is None else best[1],
            curve=curve,
            state_folder=_state_of(best, saved),
        )
        self._write(replace(record, result=result, saved=self._pruned(saved, best, newest=_NEWEST)))

    def over(self, trial_id: str, state: TrialState, error: str = "") -> None:
        """Note how a trial ended."""
        record = self._records[trial_id]
        best = best_of(record.result.curve, self._rules.mode)
        saved = self._pruned(record.saved, best, newest=1)
        result = replace(record.result, state=state, error=error)
        self._write(replace(record, result=result, saved=saved))

    def keep_only(self, trial_ids: set[str]) -> None:
        """Forget trials that Ray Tune does not know: the driver died before it had noted them."""
        for trial_id in [one for one in self._records if one not in trial_ids]:
            del self._records[trial_id]
            storage.delete(trial_folder(self._rules.folder, trial_id))

    def stop_rest(self) -> None:
        """Note that trials which still train were stopped: Ray Tune does not tell of them."""
        for result in self.results:
            if result.state == "running":
                self.over(result.id, "stopped")

    def close(self) -> None:
        """Wait until old states are deleted."""
        self._deleting.shutdown()

    def _write(self, record: TrialRecord) -> None:
        self._records[record.result.id] = record
        path = storage.join(trial_folder(self._rules.folder, record.result.id), _RECORD)
        storage.write(path, encode(record))

    def _pruned(
        self, saved: dict[str, str], best: tuple[int, float] | None, *, newest: int
    ) -> dict[str, str]:
        """Delete all states but the newest and the best."""
        keep = {*sorted(saved, key=int)[-newest:], *([] if best is None else [str(best[0])])}
        for step in saved:
            if step not in keep:
                self._deleting.submit(_delete, saved[step])
        return {step: folder for step, folder in saved.items() if step in keep}


def best_of(curve: list[tuple[int, float]], mode: Way) -> tuple[int, float] | None:
    """Return the best point of a curve, the earliest of equal ones."""
    if not curve:
        return None
    choose = min if mode == "min" else max
    return choose(curve, key=lambda point: point[1])


def _state_of(best: tuple[int, float] | None, saved: dict[str, str]) -> str:
    """Where the trial is saved as it was at its best, else as it was last."""
    if best is not None and str(best[0]) in saved:
        return saved[str(best[0])]
    return saved[max(saved, key=int)] if saved else ""


def _delete(folder: str) -> None:
    try:
        storage.delete(folder)
    except StorageError as error:  # what stays is only in the way
        logger.warning("an old state stays: %s", error.message)
