"""Disk: what takes it, what may go, what has gone."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from ftray.screen.tables import amount, duration, new_table

if TYPE_CHECKING:
    from ftray.garbage.sweep import Disk, Garbage

_MANY = 40  # lines; all of them are in --json


def usage(found: "Disk") -> RenderableType:
    """How much there is of each kind, and what of it nobody needs."""
    if not found.may_go:
        return Group(_totals(found), "", f"{found.root}: nothing may go")
    freed = amount(sum(garbage.size for garbage in found.may_go))
    return Group(
        _totals(found),
        "",
        _list(found, found.may_go),
        "",
        f"{found.root}: {freed} may go, by the same command with --delete",
    )


def swept(found: "Disk") -> RenderableType:
    """What has gone, and what stayed against expectation."""
    return Group(
        *([_list(found, found.gone), ""] if found.gone else []),
        *(Text(_stayed(piece.path, piece.why), style="yellow") for piece in found.stayed),
        f"{found.root}: {amount(found.freed)} freed, {len(found.gone)} deleted",
    )


def _totals(found: "Disk") -> RenderableType:
    table = new_table("", "count", "size", "may go", "why")
    for total in (total for total in found.totals if total.size):
        whys = Counter(garbage.why for garbage in found.may_go if garbage.kind == total.kind)
        why = "; ".join(f"{count}: {why}" for why, count in whys.most_common())
        going = amount(total.may_go_size) if total.may_go else "–"
        table.add_row(total.kind, f"{total.count:,}", amount(total.size), going, why)
    return table


def _list(found: "Disk", garbage: "Sequence[Garbage]") -> RenderableType:
    table = new_table("size", "what", "last used", "why")
    for piece in garbage[:_MANY]:
        age = f"{duration(max(0.0, time.time() - piece.used))} ago"
        table.add_row(amount(piece.size), piece.path.removeprefix(f"{found.root}/"), age, piece.why)
    if len(garbage) > _MANY:
        table.add_row("…", f"{len(garbage) - _MANY:,} more, see --json", "", "")
    return table


def _stayed(path: str, why: str) -> str:
    return f"stayed: {path}: {why}"
