"""What a person sees while a search runs: a table on a terminal, else a line for each report."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ftray.config.search import SearchConfig
from ftray.tune.ledger import Ledger
from ftray.tune.results import TrialResult

logger = logging.getLogger(__name__)

_DRAW_SECONDS = 0.5
_ROWS = 20  # of the table: more do not fit on a screen
_STYLES = {"running": "cyan", "finished": "green", "stopped": "yellow", "failed": "red"}


@dataclass(frozen=True)
class Whole:
    """What all trials have in common on the screen."""

    name: str
    trials: int
    steps: int  # of the longest trial


class SearchScreen:
    """Draws the ledger, on stderr."""

    def __init__(self, whole: Whole, search: SearchConfig, ledger: Ledger) -> None:
        self._whole, self._search, self._ledger = whole, search, ledger
        self._began = time.monotonic()
        self._drawn_at = 0.0
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the table during the block, if there is a terminal."""
        console = Console(stderr=True)
        if not console.is_terminal:
            yield
            return
        with Live(self._table(), console=console, auto_refresh=False) as self._live:
            try:
                yield
            finally:
                self._live.update(self._table(), refresh=True)

    def reported(self, trial_id: str) -> None:
        """Tell of a trial's new result in a line, where there is no table."""
        if self._live is not None:
            return
        result = next(one for one in self._ledger.results if one.id == trial_id)
        logger.info("%s", self._line(result))

    def look(self) -> None:
        """Draw the table anew, not too often."""
        if self._live is not None and time.monotonic() - self._drawn_at > _DRAW_SECONDS:
            self._drawn_at = time.monotonic()
            self._live.update(self._table(), refresh=True)

    def _line(self, result: TrialResult) -> str:
        said = [f"{result.id} {result.state}", f"step {result.steps}"]
        if result.curve:
            said.append(f"{self._search.metric} {result.curve[-1][1]:.4f}")
        if result.error:
            said.append(result.error)
        return ", ".join([*said, _values(result)])

    def _table(self) -> Table:
        results = self._ledger.results
        keys = list(self._search.space)
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", title=self._title())
        table.title_justify = "left"
        for title in ["trial", "state", "step", self._search.metric, *map(_short, keys)]:
            table.add_column(title, no_wrap=True)
        for result in self._ranked(results)[:_ROWS]:
            metric = "–" if result.metric is None else f"{result.metric:.4f}"
            values = [_shown(result.values.get(key, "–")) for key in keys]
            state = Text(result.state, style=_STYLES.get(result.state, ""))
            table.add_row(result.id, state, str(result.steps), metric, *values)
        if len(results) > _ROWS:
            table.add_row(f"… {len(results) - _ROWS} more")
        return table

    def _title(self) -> str:
        seconds = time.monotonic() - self._began
        ended = f"{self._ledger.ended} of {self._whole.trials} trials over"
        return f"{self._whole.name}: {ended}, {self._ledger.tokens:,} tokens, {seconds:.0f} s"

    def _ranked(self, results: Sequence[TrialResult]) -> list[TrialResult]:
        """The best first; those without a result last."""
        sign = 1 if self._search.mode == "min" else -1
        return sorted(
            results, key=lambda one: (one.metric is None, sign * (one.metric or 0.0), one.id)
        )


def _values(result: TrialResult) -> str:
    return " ".join(f"{_short(key)}={_shown(value)}" for key, value in result.values.items())


def _short(key: str) -> str:
    return key.rpartition(".")[2]


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
