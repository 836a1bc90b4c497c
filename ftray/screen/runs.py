"""Runs: what they are doing, and what they came to."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from ftray.screen.tables import (
    FEW,
    duration,
    fact_list,
    new_table,
    next_commands,
    percent,
    short,
)

if TYPE_CHECKING:
    from ftray.commands import RunDetails, RunSummary
    from ftray.runs import Status
    from ftray.train.fit import RunResult
    from ftray.train.quickstart import QuickstartResult
    from ftray.train.usage import SourceUse


def run_result(found: "RunResult") -> RenderableType:
    """The result of a training run, and what can be done with it."""
    ref = found.adapter.ref
    commands = next_commands([f"ftray adapters show {ref}", f"ftray eval {ref} DATA"])
    return Group(_run_facts(found), *_sources(found.sources), "", commands)


def quickstart(found: "QuickstartResult") -> RenderableType:
    """The before/after table and the next commands."""
    table = new_table("held-out answers", "before", "after")
    table.add_row(
        "exact match", percent(found.before.exact_match), percent(found.after.exact_match)
    )
    table.add_row("loss", f"{found.before.loss:.3f}", f"{found.after.loss:.3f}")
    answers = new_table("expected", "before", "after")
    for first, second in list(zip(found.before.answers, found.after.answers, strict=True))[:FEW]:
        answers.add_row(short(first.expected), short(first.found), short(second.found))
    commands = next_commands(
        [
            f"ftray eval {found.run.adapter.ref} DATA",
            "ftray init lora > run.yaml",
            "ftray train run.yaml",
        ]
    )
    return Group(answers, "", table, "", _run_facts(found.run), "", commands)


def runs(found: Sequence["RunSummary"]) -> RenderableType:
    """One line for each run."""
    if not found:
        return "no runs yet: ftray init lora > run.yaml, then ftray train run.yaml"
    table = new_table("run", "state", "step", "heard of", "adapter")
    for run_ in found:
        status = run_.status
        table.add_row(run_.name, status.state, _steps(status), _age(status), status.adapter or "–")
    return table


def run(found: "RunDetails") -> RenderableType:
    """A run's state, its last metrics and its checkpoints."""
    status = found.status
    facts = {
        "state": status.state,
        "step": _steps(status),
        "heard of": _age(status),
        "attempts": str(status.attempts),
        "adapter": status.adapter or "–",
        "folder": found.folder,
    }
    if status.note:
        facts["started again"] = status.note
    if status.error:
        facts["error"] = status.error
    facts |= {f"last {key}": text for key, text in _measures(found.last, "loss").items()}
    facts |= {f"last {key}": text for key, text in _measures(found.last_eval, "eval_loss").items()}
    parts: list[RenderableType] = [found.name, fact_list(facts)]
    if found.checkpoints:
        table = new_table("checkpoint", "attempt", "workers", "best")
        for saved in found.checkpoints:
            best = "best" if saved.best else ""
            table.add_row(f"step {saved.step}", str(saved.attempt), str(saved.world_size), best)
        parts += ["", table]
    return Group(*parts, *_sources(found.sources))


def _run_facts(found: "RunResult") -> RenderableType:
    return fact_list(
        {
            "steps": str(found.steps),
            "loss": f"{found.loss:.4f}",
            "eval loss": "–" if found.eval_loss is None else f"{found.eval_loss:.4f}",
            "tokens": f"{found.tokens:,}",
            "time": duration(found.seconds),
            "loss curve": found.plot,
            "adapter": found.adapter.ref,
        }
    )


def _sources(found: Sequence["SourceUse"]) -> list[RenderableType]:
    """What each source of a mixture has given, if there are several."""
    if not found:
        return []
    table = new_table("source", "rows", "an epoch", "tokens planned", "seen")
    for use in found:
        planned = (use.rows, use.rows_an_epoch, use.tokens_planned)
        cells = ("–" if number is None else f"{number:,}" for number in planned)
        table.add_row(use.name, *cells, f"{use.tokens_seen:,}")
    return ["", table]


def _steps(status: "Status") -> str:
    return str(status.step) if status.total_steps is None else f"{status.step}/{status.total_steps}"


def _age(status: "Status") -> str:
    return f"{duration(max(0.0, time.time() - status.heartbeat))} ago"


def _measures(line: Mapping[str, object] | None, *keys: str) -> dict[str, str]:
    if line is None:
        return {}
    return {key: f"{line[key]} (step {line['step']})" for key in keys if key in line}
