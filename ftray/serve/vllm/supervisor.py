"""Keeps a vLLM server running: starts it, notices its end, starts it again, or gives up."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from ftray.errors import ServeError, first_line
from ftray.serve.protocol import RefusedError
from ftray.serve.vllm.client import VllmClient
from ftray.serve.vllm.options import VllmOptions
from ftray.serve.vllm.server import VllmServer

logger = logging.getLogger(__name__)

_STEADY_SECONDS = 60.0  # a server that has run for so long does not count as failing at once
_LONGEST_BACKOFF = 60.0


class Supervisor:
    """`lost` is called at once when a server ends, `ready` when one can be used."""

    def __init__(
        self,
        launch: Callable[[], Awaitable[VllmServer]],
        lost: Callable[[str], None],
        ready: Callable[[], Awaitable[None]],
        options: VllmOptions,
    ) -> None:
        self._launch, self._lost, self._ready = launch, lost, ready
        self._options = options
        self._server: VllmServer | None = None
        self._is_up, self._failures = False, 0
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raise ServeError when the first one does not start: another try would fail as well."""
        await self._bring_up()
        self._watch = asyncio.create_task(self._supervise())

    @property
    def client(self) -> VllmClient:
        """Of the server that runs; raises RefusedError("lost") between two."""
        if self._server is None or not self._is_up:
            what = "the vLLM server is being restarted"
            raise RefusedError(what, "try again in a minute", code="lost")
        return self._server.client

    @property
    def is_dead(self) -> bool:
        """Whether it has given up."""
        return self._watch is not None and self._watch.done()

    async def stop(self) -> None:
        """End the server, in whatever state it is."""
        self._is_up = False
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        if self._server is not None:
            await self._server.stop()
            self._server = None

    async def _bring_up(self) -> None:
        self._server = await self._launch()
        try:
            await self._server.wait_until_ready(self._options.start_seconds)
            self._is_up = True
            await self._ready()
        except BaseException:
            self._is_up = False
            await self._server.stop()
            raise

    async def _supervise(self) -> None:
        while self._failures < self._options.most_failures:
            await self._outlive()
            while self._failures < self._options.most_failures:
                try:
                    await self._restart()
                except (ServeError, OSError) as error:
                    self._failures += 1
                    logger.warning("vLLM does not start again: %s", first_line(error))
                else:
                    break
        logger.error("vLLM has failed %d times in a row: given up", self._failures)

    async def _outlive(self) -> None:
        """Wait for the server's end, and clear away what is left of it."""
        if self._server is None:
            return
        began = time.monotonic()
        reason = await self._server.wait()
        self._is_up = False
        self._lost(reason)
        steady = time.monotonic() - began > _STEADY_SECONDS
        self._failures = 0 if steady else self._failures + 1
        await self._server.stop()

    async def _restart(self) -> None:
        backoff = self._options.backoff_seconds * 2 ** max(0, self._failures - 1)
        logger.warning("vLLM starts again in %.0f s", min(backoff, _LONGEST_BACKOFF))
        await asyncio.sleep(min(backoff, _LONGEST_BACKOFF))
        await self._bring_up()
