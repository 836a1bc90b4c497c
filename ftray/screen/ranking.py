"""A search: its trials in order, what the best is worth, and what can be done with it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ftray.screen.tables import duration, fact_list, new_table, next_commands, short
from ftray.tune.report.words import counted, number, shown, taken, titles

if TYPE_CHECKING:
    from ftray.tune.report.importance import Importance
    from ftray.tune.report.summary import Report, Row


def ranking(found: "Report") -> RenderableType:
    """The ranked table of a search, and its facts; what is left out is on the page."""
    rows = found.rows[:_MOST]
    left = len(found.rows) - len(rows)
    return Group(
        _Table(found, rows),
        *([Text(f"and {left} more, see the page", style="dim")] if left else []),
        *_failures(rows),
        "",
        fact_list(_facts(found)),
        *(Text(f"note: {note}", style="yellow") for note in found.notes),
        "",
        next_commands(_next(found)),
    )


_MOST = 20


class _Table:
    """A column for each knob; where the screen is too narrow for that, one for all of them."""

    def __init__(self, found: "Report", rows: list["Row"]) -> None:
        self._found, self._rows = found, rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        named = titles(self._found.keys)
        wide = self._table(list(named.values()), [_values(row, list(named)) for row in self._rows])
        free = options.update(width=_ENDLESS)  # within its own width no table is too wide
        if Measurement.get(console, free, wide).maximum <= options.max_width:
            yield wide
        else:
            yield self._table(["values"], [[_in_one(row, named)] for row in self._rows])

    def _table(self, titles: list[str], values: list[list[str]]) -> Table:
        is_held_out = any(row.held_out is not None for row in self._rows)
        held_out = ["held out"] if is_held_out else []
        first = ["", "trial", "", self._found.metric, *held_out, "steps"]
        table = new_table(*first, *titles)
        for column in table.columns[: len(first)]:
            column.no_wrap = True
        for row, given in zip(self._rows, values, strict=True):
            cells = ["–" if row.place is None else str(row.place), row.trial, _STATES[row.state]]
            cells += [number(row.metric), *([number(row.held_out)] if is_held_out else [])]
            style = {1: "green", None: "dim"}.get(row.place)
            table.add_row(*cells, f"{row.steps:,}", *given, style=style)
        return table


_ENDLESS = 10_000
_STATES = {state: state for state in ("stopped", "failed", "running", "pending")} | {"finished": ""}


def _values(row: "Row", keys: list[str]) -> list[str]:
    return [shown(row.values[key]) if key in row.values else "–" for key in keys]


def _in_one(row: "Row", named: Mapping[str, str]) -> str:
    given = [key for key in named if key in row.values]
    return ", ".join(f"{named[key]} {shown(row.values[key])}" for key in given)


def _failures(rows: list["Row"]) -> list[RenderableType]:
    return [short(f"{row.trial} failed: {row.error}") for row in rows if row.error]


def _facts(found: "Report") -> dict[str, str]:
    costs, best = found.costs, found.best
    facts = {"search": counted(found.states)}
    if best is not None and best.held_out is not None:
        facts["held out"] = (
            f"{found.held_out_metric} {number(best.held_out)} of trial {best.trial} on"
            f" {found.holdout}, which no trial has seen"
        )
    facts["what mattered"] = _importance(found.importance)
    facts["time"] = f"{duration(costs.seconds)}, {taken(costs.used_hours, costs.unit)}"
    if costs.alone_hours is not None and costs.saved_hours is not None:
        alone = taken(costs.alone_hours, costs.unit)
        saved = taken(costs.saved_hours, costs.unit)
        facts["saved"] = f"{saved}: one trial at a time would have taken about {alone}"
    published = [row for row in found.rows if row.adapter is not None]
    if published:
        facts["published"] = ", ".join(f"{row.adapter} (trial {row.trial})" for row in published)
    if found.alias is not None:
        facts["alias"] = f"{found.alias} is now {published[0].adapter if published else '–'}"
    return facts | {"page": f"{found.folder}/report/report.html"}


def _importance(found: "Importance") -> str:
    if found.why_not:
        return f"not said: {found.why_not}"
    told = [
        f"{knob.key} {knob.share:.0%}" + ("" if knob.stands_out else " (may be chance)")
        for knob in found.knobs[:_KNOBS]
    ]
    return ", ".join(told)


_KNOBS = 3


def _next(found: "Report") -> list[str]:
    best = found.best
    if best is None:
        return [f"open {found.folder}/report/report.html"]
    commands = [f"ftray train {found.folder}/report/best.yaml"]
    if best.adapter is not None:
        commands = [f"ftray eval {best.adapter} DATA", "ftray serve", *commands]
    return commands
