"""What a run will be."""

from typing import TYPE_CHECKING

import yaml
from rich.console import Group, RenderableType
from rich.text import Text

from ftray.screen.tables import fact_list, gib

if TYPE_CHECKING:
    from ftray.train.plan import Plan


def plan(found: "Plan") -> RenderableType:
    """The resolved config, then what follows from it, then the verdict."""
    config = yaml.safe_dump(found.config, sort_keys=False, allow_unicode=True)
    parts: list[RenderableType] = [config, fact_list(_plan_facts(found))]
    if found.memory is not None:
        parts += ["", "memory of one worker", fact_list(_sizes(found))]
    parts += ["", *(f"warning: {text}" for text in found.warnings), _verdict(found)]
    return Group(*parts)


def _plan_facts(found: "Plan") -> dict[str, str]:
    batch = found.batch
    workers = f"{batch.workers} worker{'s' if batch.workers > 1 else ''}"
    made = f"{workers} × {batch.micro} micro-batch × {batch.accumulation} accumulation"
    facts = {
        "global batch": f"{batch.size} {batch.unit} = {made}",
        "tokens a step": f"at most {batch.max_tokens:,}",
        "strategy": f"{found.strategy} on {found.worker.device}, {found.dtype}",
        "chosen": found.choice,
    }
    if found.trainable is not None and found.parameters is not None:
        share = found.trainable / found.parameters
        counts = f"{found.trainable:,} of {found.parameters:,} parameters ({share:.2%})"
        facts["trainable"] = f"{counts}, {found.method}"
    if found.traffic is not None and found.traffic.total:
        times = [f"{_took(took)} over {link}" for link, took in found.traffic.seconds().items()]
        sent = f"a worker sends {found.traffic.total / 1e6:,.1f} MB a step"
        facts["communication"] = f"{sent}: {', '.join(times)}"
    return facts


def _took(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.2g} ms"


def _sizes(found: "Plan") -> dict[str, str]:
    if found.memory is None:
        return {}
    sizes = {**found.memory.parts, "peak": found.memory.peak}
    if found.memory.peak > sum(found.memory.parts.values()):
        sizes = {**found.memory.parts, "peak (loading the base)": found.memory.peak}
    if found.memory.on_host:
        sizes["in the host's memory"] = found.memory.on_host
    return {f"  {name}": gib(size) for name, size in sizes.items()}


def _verdict(found: "Plan") -> Text:
    style = {True: "green", False: "bold red", None: "yellow"}[found.fits]
    return Text(f"{found.verdict}\n  ({found.worker.source})", style=style)
