"""How far a job's run or search is, read from its files in the storage root."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftray import registry, runs, searches
from ftray.errors import ConfigError
from ftray.registry import AdapterRecord
from ftray.runs import Metrics, Run
from ftray.searches import Search
from ftray.service.events import News
from ftray.service.tables import JobRow


@dataclass(frozen=True)
class Progress:
    """What is known of a run; nothing of one that has not begun."""

    is_alive: bool = False  # somebody is at it
    has_succeeded: bool = False
    total_steps: int | None = None
    error: str = ""


def read_progress(root: str, job: JobRow) -> Progress:
    """Read the status of a job's run, or of its search."""
    name = f"ft-{job.short}"
    try:
        if job.space is not None:
            search = searches.read_status(Search(root, name))
            is_done = search.state == "succeeded"
            return Progress(search.state == "running", is_done, None, search.error or "")
        run = runs.read_status(Run(root, name))
    except ConfigError:  # it has not begun
        return Progress()
    is_alive = run.state in ("queued", "running")
    return Progress(is_alive, run.state == "succeeded", run.total_steps, run.error or "")


@dataclass(frozen=True)
class Numbers:
    """The metrics that nobody was told of yet, as events, and up to which step they are."""

    news: Sequence[News]
    step: int
    eval_step: int


def new_numbers(root: str, job: JobRow, total_steps: int | None) -> Numbers:
    """Return what has come since the job's events were last written.

    A run that goes on from a checkpoint computes some steps again: those are told once.
    """
    lines = [] if job.space is not None else runs.read_metrics(Run(root, f"ft-{job.short}"))
    steps = [line for line in lines if "loss" in line and line["step"] > job.seen_step]
    evals = [line for line in lines if "eval_loss" in line and line["step"] > job.seen_eval]
    ordered = sorted([*steps, *evals], key=lambda line: (line["step"], "eval_loss" in line))
    chosen = ordered[:_MOST]
    last = max((line["step"] for line in chosen if "loss" in line), default=job.seen_step)
    last_eval = max((line["step"] for line in chosen if "eval_loss" in line), default=job.seen_eval)
    return Numbers([_news(line, total_steps) for line in chosen], last, last_eval)


_MOST = 500  # in one transaction


def _news(line: Metrics, total: int | None) -> News:
    step = line["step"]
    of = f"{step}/{total}" if total else str(step)
    if "eval_loss" in line:
        data = {"step": step, "total_steps": total, "valid_loss": line["eval_loss"]}
        return News(f"Step {of}: validation loss={_short(line['eval_loss'])}", data=data)
    data = {
        "step": step,
        "total_steps": total,
        "train_loss": line["loss"],
        "learning_rate": line.get("learning_rate"),
        "tokens_per_second": line.get("tokens_per_second"),
    }
    return News(f"Step {of}: training loss={_short(line['loss'])}", data=data)


def _short(value: float | None) -> str:
    return "nan" if value is None else f"{value:.4f}"


@dataclass(frozen=True)
class Result:
    """What a job has published, and its numbers as a table."""

    result: AdapterRecord
    checkpoints: Sequence[AdapterRecord]  # with the result, by step
    valid_losses: Mapping[int, float | None]  # by step, where it was measured
    tokens: int
    table: bytes


def read_result(root: str, job: JobRow) -> Result | None:
    """Return what a job has published, None if it is not (any more) there."""
    found = registry.versions(root, f"ft-{job.short}")
    results = [record for record in found if record.checkpoint is None]
    if not results:
        return None
    by_step = {int(record.metrics.get("step") or 0): record for record in found}
    ordered = [by_step[step] for step in sorted(by_step) if step > 0]
    lines = [] if job.space is not None else runs.read_metrics(Run(root, f"ft-{job.short}"))
    tokens = sum(line["tokens"] for line in lines if "loss" in line)
    evals = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    return Result(results[-1], ordered, evals, tokens, _table(lines, evals))


def checkpoint_metrics(record: AdapterRecord, found: Result) -> dict[str, Any]:
    """Return a checkpoint's numbers under OpenAI's names; the whole validation file is measured."""
    step = int(record.metrics.get("step") or 0)
    valid = found.valid_losses.get(step)
    loss = record.metrics.get("loss")
    return {"step": step, "train_loss": loss, "valid_loss": valid, "full_valid_loss": valid}


def _table(lines: Sequence[Metrics], evals: Mapping[int, float | None]) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["step", "train_loss", "valid_loss"])
    for line in lines:
        if "loss" in line:
            table.writerow([line["step"], line["loss"], evals.get(line["step"], "")])
    return text.getvalue().encode()
