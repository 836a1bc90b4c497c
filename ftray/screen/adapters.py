"""Adapters: which there are, what they are, and how good."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from ftray.screen.tables import FEW, fact_list, new_table, percent, short, when

if TYPE_CHECKING:
    from ftray.commands import AdapterVersions
    from ftray.registry import AdapterRecord
    from ftray.train.evaluate import EvalResult


def adapters(found: Sequence["AdapterVersions"]) -> RenderableType:
    """One line for each version of each adapter."""
    if not found:
        return "no adapters yet: ftray train publishes one"
    table = new_table("adapter", "method", "rank", "base", "loss", "aliases", "created")
    for adapter_ in found:
        for record in adapter_.versions:
            names = [alias for alias, to in adapter_.aliases.items() if to == record.version]
            table.add_row(*_record_cells(record), ", ".join(names), when(record.created))
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
        "created": when(record.created),
    }
    if found := record.search:
        place = f"place {found.place} of {found.trials}"
        facts["found by"] = f"search {found.search}, trial {found.trial}, {place}"
        facts |= {f"  {key}": str(value) for key, value in found.values.items()}
        facts["held out"] = found.holdout or "–"
    numbers = {key: value for key, value in record.metrics.items() if value is not None}
    return fact_list(facts | {key: f"{value:.4f}" for key, value in numbers.items()})


def evaluation(found: "EvalResult") -> RenderableType:
    """The measures of one adapter on one data set."""
    facts = fact_list(
        {
            "loss": f"{found.loss:.4f}",
            "perplexity": f"{found.perplexity:.2f}",
            "exact match": percent(found.exact_match),
            "examples": str(found.examples),
        }
    )
    misses = [answer for answer in found.answers if not answer.is_exact][:FEW]
    if not misses:
        return facts
    table = new_table("expected", "found instead")
    for miss in misses:
        table.add_row(short(miss.expected), short(miss.found))
    return Group(facts, "", table)


def _record_cells(record: "AdapterRecord") -> tuple[str, ...]:
    loss = record.metrics.get("best_eval_loss", record.metrics.get("loss"))
    shown = "–" if loss is None else f"{loss:.4f}"
    rank = "–" if record.rank is None else str(record.rank)
    return record.ref, record.method, rank, record.base.name, shown
