"""What one ingress is to be told of its generations on an engine."""

import asyncio
from collections.abc import AsyncIterator

from ftray.serve.protocol import Piece

_IDLE_SECONDS = 2.0


class Outbox:
    """Collects pieces until the one call that carries them takes all at once."""

    def __init__(self) -> None:
        self.is_carried = False
        self._open: dict[str, _Open] = {}  # by generation
        self._pieces: list[Piece] = []
        self._news = asyncio.Event()

    def open(self, id: str, choices: int) -> None:
        """Expect the pieces of a generation with so many choices."""
        self._open[id] = _Open(choices)

    def put(self, piece: Piece) -> bool:
        """Take a piece; returns whether it was its generation's last."""
        self._pieces.append(piece)
        self._news.set()
        opened = self._open[piece.id]
        opened.choices -= piece.finish is not None
        is_last = piece.error is not None or not opened.choices
        if is_last:
            self.close(piece.id)
        return is_last

    def close(self, id: str) -> None:
        """Expect no more pieces of a generation."""
        if opened := self._open.pop(id, None):
            opened.ended.set()

    async def ended(self, id: str) -> None:
        """Wait for the end of a generation."""
        if opened := self._open.get(id):
            await opened.ended.wait()

    async def carried(self) -> AsyncIterator[list[Piece]]:
        """Yield what has come since, until nothing is expected for a while."""
        self.is_carried = True
        try:
            while await self._has_news():
                pieces, self._pieces = self._pieces, []
                self._news.clear()
                yield pieces
        finally:
            self.is_carried = False

    async def _has_news(self) -> bool:
        while True:
            try:
                async with asyncio.timeout(_IDLE_SECONDS):
                    await self._news.wait()
            except TimeoutError:
                if not self._open:
                    return False
            else:
                return True


class _Open:
    def __init__(self, choices: int) -> None:
        self.choices = choices
        self.ended = asyncio.Event()
