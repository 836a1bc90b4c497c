"""The results of a run as tables."""

from collections.abc import Callable
from typing import Any

from figures import Figures, medians
from rich.console import Console
from rich.table import Table

SIDES = {"ours": "ftray", "batched": "datasets.map batched", "trl": "datasets.map as TRL 1.16"}


def print_tables(results: dict[str, Any]) -> None:
    """Print all of a run's results."""
    console = Console(width=120)
    _print_machine(console, results)
    compared = results["compared"]
    middle = {side: medians([run[side] for run in compared]) for side in compared[0]}
    console.print(_comparison(middle, f"medians of {len(compared)}, order alternating"))
    if results["largest"]:
        console.print(_comparison(results["largest"], "once"))
    grown = [run["ours"] for run in results["growth"]]
    grown += [middle["ours"]] + ([results["largest"]["ours"]] if results["largest"] else [])
    console.print(_growth(grown))
    console.print(_cost(results["cost"]))
    _print_training(console, results["training"])


def _print_machine(console: Console, results: dict[str, Any]) -> None:
    facts = results["machine"]
    console.print(", ".join(f"{key} {value}" for key, value in facts.items()), style="dim")
    before, after = results["load_before"], results["load_after"]
    console.print(f"load average before {before}, after {after}", style="dim")
    if max(before[0], before[1]) > 0.5:
        console.print("[bold]others were using this machine: no figure here is to be trusted[/]")


def _comparison(sides: dict[str, Figures], how: str) -> Table:
    ours = sides["ours"]
    title = f"{ours['rows']:,} rows, {ours['tokens']:,} tokens; 2 processes of 1 thread; {how}"
    table = Table("", *(SIDES[side] for side in sides), title=title, title_justify="left")
    for name, cell in _LINES.items():
        table.add_row(name, *(cell(figures) for figures in sides.values()))
    ratios = [ours["rows_per_second"] / figures["rows_per_second"] for figures in sides.values()]
    table.add_row("steady: ftray's rate to it", *(f"{ratio:.2f} x" for ratio in ratios))
    walls = [figures["packed"] / ours["packed"] for figures in sides.values()]
    table.add_row("all made and packed: ftray to it", *(f"{ratio:.2f} x" for ratio in walls))
    return table


def _number(key: str, form: str = "{:,.1f}") -> Callable[[Figures], str]:
    return lambda figures: form.format(figures[key]) if key in figures else "–"


def _workers(figures: Figures) -> str:
    pairs = figures.get("workers", [])
    return "  ".join(f"{first:,.0f} → {last:,.0f}" for first, last in pairs) or "–"


_LINES: dict[str, Callable[[Figures], str]] = {
    "steady: rows/s, both processes": _number("rows_per_second", "{:,.0f}"),
    "steady: tokens/s, both processes": _number("tokens_per_second", "{:,.0f}"),
    "imports, s": _number("import"),
    "Ray's start, s": _number("ray_start"),
    "from here on since Ray is up, or imports are done:": lambda figures: "",
    "  files read into Arrow, s": _number("read"),
    "  first task began, s": _number("worker_start"),
    "  first shard, or batch of map, s": _number("first_part"),
    "  first batch for the trainer, s": _number("first_batch"),
    "  all tokens made, s": _number("made"),
    "  and packed, s": _number("packed"),
    "whole process, s": _number("wall"),
    "CPU of all processes, µs a row": _number("cpu_us_per_row", "{:,.0f}"),
    "driver's memory grows by, MB": _number("driver_growth", "{:,.0f}"),
    "workers' memory, first → last quarter, MB": _workers,
    "packs filled at 2048": _number("fill", "{:.2%}"),
}


def _growth(runs: list[Figures]) -> Table:
    table = Table(
        "rows",
        "work, s",
        "more, µs a row",
        "steady rows/s",
        "driver grows, MB",
        title="growth",
        title_justify="left",
    )
    before = (0, 0.0)
    for run in runs:
        work = run["made"] - run["worker_start"]  # since the first task began
        more = (work - before[1]) / (run["rows"] - before[0]) * 1e6
        numbers = (f"{work:,.1f}", f"{more:,.0f}", f"{run['rows_per_second']:,.0f}")
        table.add_row(f"{run['rows']:,}", *numbers, f"{run['driver_growth']:,.0f}")
        before = (run["rows"], work)
    return table


def _cost(cost: Figures) -> Table:
    total = cost["us_per_row"]
    title = f"one process, {cost['rows']:,} rows: {total:.0f} µs a row"
    table = Table("module", "µs a row", "share", title=title, title_justify="left")
    for name, spent in cost["modules"].items():
        table.add_row(name, f"{spent:.1f}", f"{spent / total:.0%}")
    table.add_section()
    for name, spent in cost["functions"].items():
        table.add_row(name, f"{spent:.1f}", f"{spent / total:.0%}")
    return table


def _print_training(console: Console, waits: Figures) -> None:
    console.print(
        f"trainer, while shards were made ({waits['steps_while_made']} of {waits['steps']} steps of"
        f" {waits['step']:.2f} s): waited {waits['share']:.2%} of step time for data, at most"
        f" {waits['longest'] * 1000:.0f} ms; its first batch took {waits['first_wait']:.1f} s"
    )
