"""Which generations have not ended, and the news of them that wait to be read."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from ftray.serve.protocol import Generation, Piece


@dataclass
class _Open:
    adapter: str | None
    choices: int


class Ledger:
    """Runs on the engine's loop; `release` is told the adapter of each generation that ends."""

    def __init__(self, release: Callable[[str], None]) -> None:
        self._release = release
        self._open: dict[str, _Open] = {}
        self._news: asyncio.Queue[list[Piece] | None] = asyncio.Queue()
        self._dropped: set[str] = set()  # closed without an end, and perhaps among the news
        self._idle = asyncio.Event()

    def __contains__(self, id: str) -> bool:
        return id in self._open

    def __len__(self) -> int:
        return len(self._open)

    def open(self, generation: Generation) -> None:
        """Wait for its pieces from here on."""
        self._open[generation.id] = _Open(generation.adapter, generation.n)

    def drop(self, id: str) -> None:
        """Close it, if it is open; no reader hears of it again."""
        if id in self._open:
            self._dropped.add(id)
            self._close(id)

    def deliver(self, pieces: list[Piece]) -> None:
        """Take what a step has added; what was closed meanwhile is left out."""
        current = [piece for piece in pieces if piece.id in self._open]
        for piece in current:
            if piece.finish:
                self._open[piece.id].choices -= 1
            if piece.error or not self._open[piece.id].choices:
                self._close(piece.id)
        if current:
            self._news.put_nowait(current)

    def end(self) -> None:
        """Let the reader end when it has read all."""
        self._news.put_nowait(None)

    async def read(self) -> AsyncIterator[list[Piece]]:
        """Yield the news."""
        while (news := await self._news.get()) is not None:
            current = [piece for piece in news if piece.id not in self._dropped]
            if self._news.empty():
                self._dropped.clear()
            if current:
                yield current

    async def is_idle_within(self, seconds: float) -> bool:
        """Wait until nothing is open."""
        self._idle.clear()
        if self._open:
            try:
                await asyncio.wait_for(self._idle.wait(), seconds)
            except TimeoutError:
                return False
        return True

    def _close(self, id: str) -> None:
        adapter = self._open.pop(id).adapter
        if adapter is not None:
            self._release(adapter)
        if not self._open:
            self._idle.set()
