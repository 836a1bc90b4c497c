"""An engine in this process, or any that speaks its protocol, as the routes want it."""

import asyncio
import logging
from collections.abc import AsyncIterator

from ftray.serve.pieces import by_generation, until_ended
from ftray.serve.protocol import (
    AdapterSource,
    Engine,
    EngineInfo,
    EngineStats,
    Generation,
    Piece,
    RefusedError,
)

logger = logging.getLogger(__name__)


class LocalEngines:
    """Hands each generation its own pieces out of the engine's one stream for all.

    Call `start` once within the event loop, and `stop` at the end.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._info: EngineInfo | None = None
        self._waiting: dict[str, asyncio.Queue[list[Piece]]] = {}
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> EngineInfo:
        """Load the base model."""
        self._info = await self._engine.start()
        self._reader = asyncio.create_task(self._read())
        return self._info

    async def stop(self) -> None:
        """Free everything."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self._engine.stop()

    async def generate(
        self, generation: Generation, source: AdapterSource | None
    ) -> AsyncIterator[list[Piece]]:
        """Load, submit, and return the pieces of this generation."""
        if source is not None:
            await self._engine.load(source)
        arrived: asyncio.Queue[list[Piece]] = asyncio.Queue()
        self._waiting[generation.id] = arrived  # before any piece can come
        try:
            await self._engine.submit(generation)
        except BaseException:
            self.cancel(generation.id)  # it may have been taken all the same
            raise
        return until_ended(generation.n, arrived, lambda: self._waiting.pop(generation.id, None))

    def cancel(self, id: str) -> None:
        """End a generation."""
        if self._waiting.pop(id, None) is not None:
            self._engine.cancel(id)

    async def info(self) -> EngineInfo | None:
        """Return what runs."""
        return self._info

    async def stats(self) -> EngineStats | None:
        """Return its counts."""
        return self._engine.stats() if self._info is not None else None

    async def _read(self) -> None:
        try:
            async for pieces in self._engine.pieces():
                for id, own in by_generation(pieces).items():
                    if waiting := self._waiting.get(id):
                        waiting.put_nowait(own)
        except Exception:  # the engine is gone: nobody may wait for it for ever
            logger.exception("the engine's stream has failed")
        lost = RefusedError("the engine has stopped", code="internal")
        for id, waiting in self._waiting.items():
            waiting.put_nowait([Piece(id, error=lost)])
