"""What all answers are made of: facts, tables, sizes and times."""

import time
from collections.abc import Mapping, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

FEW = 3  # examples, where there are many
_WIDTH = 160


def fact_list(facts: Mapping[str, str]) -> RenderableType:
    """A name and a text on each line."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in facts.items():
        table.add_row(Text(name, style="dim"), text)
    return table


def new_table(*titles: str) -> Table:
    """A table without rows yet."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def next_commands(lines: Sequence[str]) -> RenderableType:
    """What to type next."""
    return Text("next:\n" + "\n".join(f"  {line}" for line in lines))


def short(text: str) -> Text:
    """One line of an answer, as it is and not as markup."""
    line = " ".join(text.split())
    return Text(line if len(line) <= _WIDTH else f"{line[:_WIDTH]}…")


def percent(share: float | None) -> str:
    """A share of 1, if it is known."""
    return "–" if share is None else f"{share:.1%}"


def when(seconds: float) -> str:
    """A moment in unix seconds, in local time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def duration(seconds: float) -> str:
    """A stretch of time in the unit that suits it."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 60:
        return f"{minutes:.1f} min"
    hours = minutes / 60
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} d"


def amount(size: int) -> str:
    """Bytes in the unit that suits them."""
    exponent = min(max(0, (size.bit_length() - 1) // 10), len(_UNITS) - 1)
    digits = 0 if exponent == 0 else 1
    return f"{size / 2 ** (10 * exponent):.{digits}f} {_UNITS[exponent]}"


_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def gib(size: int) -> str:
    """Bytes as GiB, aligned."""
    return f"{size / 2**30:8.3f} GiB"
