"""The engines' replicas as the HTTP side wants them: one generation, its own pieces."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Coroutine
from contextvars import Context
from dataclasses import asdict
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from ftray.errors import first_line
from ftray.serve.pieces import by_generation, until_ended
from ftray.serve.protocol import (
    AdapterSource,
    EngineInfo,
    EngineStats,
    Generation,
    Piece,
    RefusedError,
)
from ftray.serve.replica import EngineReplica

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_ANSWER_SECONDS = 5.0  # a replica that is busy for longer is not ready
_TRIES = 3  # replicas that may be lost before the first token


class Fleet:
    """Sends generations to replicas, and hands each its pieces out of the replicas' streams."""

    def __init__(self, engines: DeploymentHandle[EngineReplica]) -> None:
        self._engines = engines
        self._id = uuid.uuid4().hex
        self._running: dict[str, _Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._info: EngineInfo | None = None
        self._looked = -_LOOK_SECONDS

    async def generate(
        self, generation: Generation, source: AdapterSource | None
    ) -> AsyncIterator[list[Piece]]:
        """Return the pieces of this generation, once a replica has taken it."""
        running = self._running[generation.id] = _Running(generation, source)
        self._begin(self._run(running))
        try:
            await running.taken
        except BaseException:
            self.cancel(generation.id)
            raise
        id, arrived = generation.id, running.arrived
        return until_ended(generation.n, arrived, lambda: self._running.pop(id, None))

    def cancel(self, id: str) -> None:
        """End a generation."""
        running = self._running.pop(id, None)
        if running is not None and running.replica is not None:
            self._begin(self._cancel(id))

    async def info(self) -> EngineInfo | None:
        """Return what runs; None while no replica answers."""
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            self._info = await self._asked_info()
        return self._info

    async def stats(self) -> EngineStats | None:
        """Return the sums over all replicas."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                found = await self._engines.broadcast("stats").results_async()
        except (TimeoutError, RayError, RayServeException):
            return None
        counts = [asdict(stats) for stats in found]
        return EngineStats(**{name: sum(one[name] for one in counts) for name in counts[0]})

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Have it done in a context of its own, beside the request that it is for.

        Serve cancels a call with the request that began it, and here the call may carry the pieces
        of others, or be the one that ends what the request has left behind.
        """
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel(self, id: str) -> None:
        try:
            # Serve sends it when its results are asked for
            await self._engines.broadcast("cancel", id).results_async()
        except (RayError, RayServeException) as error:
            logger.warning("generation %s was not cancelled: %s", id, first_line(error))

    async def _asked_info(self) -> EngineInfo | None:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                info: EngineInfo = await self._engines.info.remote()
        except (TimeoutError, RayError, RayServeException) as error:
            logger.warning("no engine answers: %s", first_line(error))
            return None
        return info

    async def _run(self, running: "_Running") -> None:
        """Have it run on a replica; on another one if that is lost before the first token."""
        for number in range(1, _TRIES + 1):
            try:
                await self._run_once(running)
            except RefusedError as error:
                self._end(running, error)
            except BackPressureError:
                self._end(running, RefusedError("all engines are busy", code="queue_full"))
            except (RayError, RayServeException, TimeoutError) as error:
                self._lose(running, first_line(error), is_last=number == _TRIES)
            if running.is_over(self._running):
                return

    async def _run_once(self, running: "_Running") -> None:
        generate = self._engines.options(method_name="generate", stream=True)
        async with generate.choose_replica() as chosen:
            if running.is_over(self._running):
                return  # nobody waits any more
            running.replica = chosen.replica_id
            messages: Any = generate.dispatch(  # mypy sees both kinds of answers
                chosen, self._id, running.generation, running.source
            )
            refusal = await anext(messages)
        if refusal is not None:
            raise refusal
        if self._running.get(running.generation.id) is not running:
            self._begin(self._cancel(running.generation.id))  # one sent before may have come first
        if not running.taken.done():
            running.taken.set_result(None)
        await self._carry(running.replica, messages)

    async def _carry(self, replica: str, messages: AsyncIterator[list[Piece]]) -> None:
        """Deliver what comes; where a stream breaks, its replica's generations are lost with it."""
        try:
            async for pieces in messages:
                for id, own in by_generation(pieces).items():
                    if running := self._running.get(id):
                        running.has_begun = True
                        running.arrived.put_nowait(own)
        except (RayError, RayServeException) as error:
            for running in list(self._running.values()):
                if running.replica == replica and running.has_begun:
                    self._lose(running, first_line(error), is_last=True)
            raise

    def _lose(self, running: "_Running", reason: str, *, is_last: bool) -> None:
        """Tell who waits, unless it can be tried on another replica without anybody noticing."""
        logger.warning("generation %s lost its engine: %s", running.generation.id, reason)
        running.replica = None
        if is_last or running.has_begun:
            self._info = None
            self._end(running, RefusedError("the engine was lost", "try again", "lost"))

    def _end(self, running: "_Running", error: RefusedError) -> None:
        if self._running.pop(running.generation.id, None) is None:
            return
        if running.taken.done():
            running.arrived.put_nowait([Piece(running.generation.id, error=error)])
        else:
            running.taken.set_exception(error)


class _Running:
    """A generation on its way."""

    def __init__(self, generation: Generation, source: AdapterSource | None) -> None:
        self.generation = generation
        self.source = source
        self.replica: str | None = None
        self.has_begun = False
        self.taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.arrived: asyncio.Queue[list[Piece]] = asyncio.Queue()

    def is_over(self, running: dict[str, "_Running"]) -> bool:
        """Whether nobody waits for it on any replica."""
        return running.get(self.generation.id) is not self or self.replica is not None
