"""The pieces of a request's generations as one stream."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from ftray.serve.openai.errors import BUG, ApiError, refused
from ftray.serve.openai.service import Engines
from ftray.serve.protocol import AdapterSource, Generation, Piece, RefusedError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece, and which of the answer's choices it belongs to."""

    choice: int
    piece: Piece


class Flow:
    """Generations that run together; choices are numbered through, prompt by prompt."""

    def __init__(self, engines: Engines, generations: Sequence[Generation]) -> None:
        self._engines = engines
        self._running = {generation.id: generation.n for generation in generations}  # choices left
        self._generations = generations
        self._arrived: asyncio.Queue[list[Part] | ApiError] = asyncio.Queue()
        self._pumps: list[asyncio.Task[None]] = []

    @property
    def is_done(self) -> bool:
        """Whether every choice has come to its end, and been read."""
        return not self._running and self._arrived.empty()

    async def open(self, source: AdapterSource | None) -> None:
        """Return once the engine has taken all generations; raises ApiError."""
        first = 0
        for generation in self._generations:
            try:
                pieces = await self._engines.generate(generation, source)
            except RefusedError as error:
                del self._running[generation.id]
                raise refused(error) from None
            self._pumps.append(asyncio.create_task(self._pump(generation.id, first, pieces)))
            first += generation.n

    async def next(self, seconds: float) -> list[Part]:
        """Return what has come, empty if nothing has for so long; raises ApiError."""
        try:
            async with asyncio.timeout(seconds):
                arrived = await self._arrived.get()
        except TimeoutError:
            return []
        if isinstance(arrived, ApiError):
            raise arrived
        return arrived

    def close(self) -> None:
        """End what still runs."""
        for pump in self._pumps:
            pump.cancel()
        for id in self._running:
            self._engines.cancel(id)
        self._running = {}

    async def _pump(self, id: str, first: int, batches: AsyncIterator[list[Piece]]) -> None:
        """Move one generation's pieces; its end without an end is an error."""
        try:
            async for pieces in batches:
                for piece in pieces:
                    if piece.error is not None:
                        self._fail(id, refused(piece.error))
                        return
                    if piece.finish is not None:
                        self._ended(id)
                self._arrived.put_nowait([Part(first + piece.index, piece) for piece in pieces])
            if id in self._running:
                self._fail(id, ApiError(BUG, "the engine has lost this answer"))
        except RefusedError as error:
            self._fail(id, refused(error))
        except Exception:  # a bug in a task: who waits for its pieces would wait for ever
            logger.exception("generation %s failed", id)
            self._fail(id, ApiError(BUG, "the answer was lost by an internal error"))

    def _fail(self, id: str, error: ApiError) -> None:
        """Tell first: a generation that is not running and has told nothing looks whole."""
        self._arrived.put_nowait(error)
        self._running.pop(id, None)

    def _ended(self, id: str) -> None:
        self._running[id] -= 1
        if not self._running[id]:
            del self._running[id]
