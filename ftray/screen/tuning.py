"""A search that has ended."""

from typing import TYPE_CHECKING

from rich.console import RenderableType

from ftray.screen.ranking import ranking

if TYPE_CHECKING:
    from ftray.tune.search import Found


def search_result(found: "Found") -> RenderableType:
    """The ranked table, what it cost, and what can be done with the best trial."""
    return ranking(found.report)
