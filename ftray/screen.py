"""Answers as people read them in a terminal."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import yaml
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ftray.commands import AdapterVersions, RunDetails, RunSummary
    from ftray.data.preview import PreviewRow
    from ftray.data.report.quality import Quality, SetQuality
    from ftray.registry import AdapterRecord
    from ftray.runs import Status
    from ftray.train.evaluate import EvalResult
    from ftray.train.examine import Examined
    from ftray.train.fit import RunResult
    from ftray.train.plan import Plan
    from ftray.train.quickstart import QuickstartResult
    from ftray.train.usage import SourceUse


def plan(found: "Plan") -> RenderableType:
    """The resolved config, then what follows from it, then the verdict."""
    config = yaml.safe_dump(found.config, sort_keys=False, allow_unicode=True)
    parts: list[RenderableType] = [config, _facts(_plan_facts(found))]
    if found.memory is not None:
        parts += ["", "memory of one worker", _facts(_sizes(found))]
    parts += ["", *(f"warning: {text}" for text in found.warnings), _verdict(found)]
    return Group(*parts)


def run_result(found: "RunResult") -> RenderableType:
    """The result of a training run, and what can be done with it."""
    ref = found.adapter.ref
    commands = _next([f"ftray adapters show {ref}", f"ftray eval {ref} DATA"])
    return Group(_run_facts(found), *_sources(found.sources), "", commands)


def quickstart(found: "QuickstartResult") -> RenderableType:
    """The before/after table and the next commands."""
    table = _table("held-out answers", "before", "after")
    table.add_row("exact match", _percent(found.before), _percent(found.after))
    table.add_row("loss", f"{found.before.loss:.3f}", f"{found.after.loss:.3f}")
    answers = _table("expected", "before", "after")
    for first, second in list(zip(found.before.answers, found.after.answers, strict=True))[:_FEW]:
        answers.add_row(_short(first.expected), _short(first.found), _short(second.found))
    commands = _next(
        [
            f"ftray eval {found.run.adapter.ref} DATA",
            "ftray init lora > run.yaml",
            "ftray train run.yaml",
        ]
    )
    return Group(answers, "", table, "", _run_facts(found.run), "", commands)


def evaluation(found: "EvalResult") -> RenderableType:
    """The measures of one adapter on one data set."""
    facts = _facts(
        {
            "loss": f"{found.loss:.4f}",
            "perplexity": f"{found.perplexity:.2f}",
            "exact match": _percent(found),
            "examples": str(found.examples),
        }
    )
    misses = [answer for answer in found.answers if not answer.is_exact][:_FEW]
    if not misses:
        return facts
    table = _table("expected", "found instead")
    for miss in misses:
        table.add_row(_short(miss.expected), _short(miss.found))
    return Group(facts, "", table)


def preview(found: Sequence["PreviewRow"]) -> RenderableType:
    """Rows as the model sees them: what is trained stands between « and », and in green."""
    return Group(*(_preview_row(row) for row in found))


def data_report(found: "Examined") -> RenderableType:
    """What the data is like, on one screen, and what it comes to; the rest is on the page."""
    quality, verdict = found.quality, found.verdict
    table = _table("", "rows", "tokens", "learned", "median", "longest", "bad rows")
    for name, part in (("train", quality.train), ("eval", quality.eval)):
        if part is not None:
            table.add_row(*_set_cells(name, part))
    said = "nothing stops a run on this data" if verdict.is_ok else "ftray train would refuse this:"
    return Group(
        table,
        "",
        _facts(_data_facts(quality)),
        "",
        *(Text(f"note: {note}", style="yellow") for note in verdict.notes),
        Text(said, style="green" if verdict.is_ok else "bold red"),
        *(Text(f"  {stop}", style="red") for stop in verdict.stops),
        f"page: {found.page}",
    )


def runs(found: Sequence["RunSummary"]) -> RenderableType:
    """One line for each run."""
    if not found:
        return "no runs yet: ftray init lora > run.yaml, then ftray train run.yaml"
    table = _table("run", "state", "step", "heard of", "adapter")
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
    if status.error:
        facts["error"] = status.error
    facts |= {f"last {key}": text for key, text in _measures(found.last, "loss").items()}
    facts |= {f"last {key}": text for key, text in _measures(found.last_eval, "eval_loss").items()}
    parts: list[RenderableType] = [found.name, _facts(facts)]
    if found.checkpoints:
        table = _table("checkpoint", "attempt", "workers", "best")
        for saved in found.checkpoints:
            best = "best" if saved.best else ""
            table.add_row(f"step {saved.step}", str(saved.attempt), str(saved.world_size), best)
        parts += ["", table]
    return Group(*parts, *_sources(found.sources))


def adapters(found: Sequence["AdapterVersions"]) -> RenderableType:
    """One line for each version of each adapter."""
    if not found:
        return "no adapters yet: ftray train publishes one"
    table = _table("adapter", "method", "rank", "base", "loss", "aliases", "created")
    for adapter_ in found:
        for record in adapter_.versions:
            names = [alias for alias, to in adapter_.aliases.items() if to == record.version]
            table.add_row(*_record_cells(record), ", ".join(names), _when(record.created))
    return table


def adapter(record: "AdapterRecord") -> RenderableType:
    """One record, without its file list and run config (these are in --json)."""
    facts = {
        "adapter": record.ref,
        "kind": record.kind,
        "method": record.method,
        "rank": "–" if record.rank is None else str(record.rank),
        "base": record.base.name,
        "revision": record.base.revision or "–",
        "fingerprint": record.base.fingerprint,
        "files": ", ".join(record.files),
        "digest": record.digest,
        "created": _when(record.created),
    }
    numbers = {key: value for key, value in record.metrics.items() if value is not None}
    return _facts(facts | {key: f"{value:.4f}" for key, value in numbers.items()})


def _plan_facts(found: "Plan") -> dict[str, str]:
    batch = found.batch
    made = (
        f"{batch.workers} workers × {batch.micro} micro-batch × {batch.accumulation} accumulation"
    )
    facts = {
        "global batch": f"{batch.size} {batch.unit} = {made}",
        "tokens a step": f"at most {batch.max_tokens:,}",
        "strategy": f"{found.strategy} on {found.worker.device}, {found.dtype}",
    }
    if found.trainable is not None and found.parameters is not None:
        share = found.trainable / found.parameters
        counts = f"{found.trainable:,} of {found.parameters:,} parameters ({share:.2%})"
        facts["trainable"] = f"{counts}, {found.method}"
    return facts


def _sizes(found: "Plan") -> dict[str, str]:
    if found.memory is None:
        return {}
    sizes = {**found.memory.parts, "peak": found.memory.peak}
    if found.memory.peak > sum(found.memory.parts.values()):
        sizes = {**found.memory.parts, "peak (loading the base)": found.memory.peak}
    return {f"  {name}": _gib(size) for name, size in sizes.items()}


def _verdict(found: "Plan") -> Text:
    style = {True: "green", False: "bold red", None: "yellow"}[found.fits]
    return Text(f"{found.verdict}\n  ({found.worker.source})", style=style)


def _preview_row(row: "PreviewRow") -> RenderableType:
    text = Text(f"── {row.source}: {row.tokens} tokens, {row.trained} trained\n", style="dim")
    for piece in row.pieces:
        if piece.trained:
            text.append("«", style="dim").append(piece.text, style="green").append("»", style="dim")
        else:
            text.append(piece.text)
    return text.append("\n")


def _set_cells(name: str, part: "SetQuality") -> tuple[str, ...]:
    lengths = part.lengths
    ends = ("–", "–") if lengths is None else (f"{lengths.median:,}", f"{lengths.max:,}")
    counts = (f"{part.rows:,}", f"{part.tokens:,}", f"{part.label_share:.1%}")
    return name, *counts, *ends, f"{part.bad.count:,}"


def _data_facts(found: "Quality") -> dict[str, str]:
    train, overlap = found.train, found.overlap
    facts = {}
    if train.lengths is not None:
        bars = _sparkline(train.length_bars.counts)
        facts["lengths"] = f"{train.lengths.min:,} {bars} {train.lengths.max:,} tokens a row"
    facts["too long"] = (
        f"{train.overflow.too_long:,} over data.max_length={found.max_length} ({found.overflow})"
    )
    if (filling := train.filling) is not None:
        full = filling.packed if filling.packing else 1 - filling.padding
        facts["batches"] = f"{full:.1%} of all positions filled, {filling.steps:,} steps an epoch"
    near = "" if train.repeats.near is None else f", {train.repeats.near:,} like one"
    facts["repeats"] = f"{train.repeats.exact:,} equal to an earlier row{near}"
    if overlap is not None:
        near = "" if overlap.near is None else f", {overlap.near:,} more rows like one"
        facts["eval in train"] = f"{overlap.prompts:,} of {overlap.rows:,} prompts{near}"
    facts |= {f"bad: {reason}": f"{n:,}" for reason, n in list(train.bad.reasons.items())[:_FEW]}
    return facts


def _sparkline(counts: Sequence[int]) -> str:
    heights = [-(-count * (len(_BLOCKS) - 1) // max(counts)) for count in counts]
    return "".join(_BLOCKS[height] for height in heights).strip()


_BLOCKS = " ▁▂▃▄▅▆▇█"


def _record_cells(record: "AdapterRecord") -> tuple[str, ...]:
    loss = record.metrics.get("best_eval_loss", record.metrics.get("loss"))
    shown = "–" if loss is None else f"{loss:.4f}"
    rank = "–" if record.rank is None else str(record.rank)
    return record.ref, record.method, rank, record.base.name, shown


def _run_facts(found: "RunResult") -> RenderableType:
    return _facts(
        {
            "steps": str(found.steps),
            "loss": f"{found.loss:.4f}",
            "eval loss": "–" if found.eval_loss is None else f"{found.eval_loss:.4f}",
            "tokens": f"{found.tokens:,}",
            "time": _duration(found.seconds),
            "loss curve": found.plot,
            "adapter": found.adapter.ref,
        }
    )


def _sources(found: Sequence["SourceUse"]) -> list[RenderableType]:
    """What each source of a mixture has given, if there are several."""
    if not found:
        return []
    table = _table("source", "rows", "an epoch", "tokens planned", "seen")
    for use in found:
        planned = (use.rows, use.rows_an_epoch, use.tokens_planned)
        cells = ("–" if number is None else f"{number:,}" for number in planned)
        table.add_row(use.name, *cells, f"{use.tokens_seen:,}")
    return ["", table]


def _short(text: str) -> Text:
    """One line of an answer, as it is and not as markup."""
    line = " ".join(text.split())
    return Text(line if len(line) <= _ANSWER_WIDTH else f"{line[:_ANSWER_WIDTH]}…")


_FEW = 3
_ANSWER_WIDTH = 160


def _percent(found: "EvalResult") -> str:
    return "–" if found.exact_match is None else f"{found.exact_match:.1%}"


def _measures(line: Mapping[str, object] | None, *keys: str) -> dict[str, str]:
    if line is None:
        return {}
    return {key: f"{line[key]} (step {line['step']})" for key in keys if key in line}


def _facts(facts: Mapping[str, str]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in facts.items():
        table.add_row(Text(name, style="dim"), text)
    return table


def _table(*titles: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def _next(lines: Sequence[str]) -> RenderableType:
    return Text("next:\n" + "\n".join(f"  {line}" for line in lines))


def _steps(status: "Status") -> str:
    return str(status.step) if status.total_steps is None else f"{status.step}/{status.total_steps}"


def _age(status: "Status") -> str:
    return f"{_duration(max(0.0, time.time() - status.heartbeat))} ago"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 60:
        return f"{minutes:.1f} min"
    hours = minutes / 60
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} d"


def _gib(size: int) -> str:
    return f"{size / 2**30:8.3f} GiB"
