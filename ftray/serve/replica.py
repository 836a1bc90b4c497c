"""The engine as a Ray Serve deployment: one replica holds one copy of the base model."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator

import psutil
import torch

from ftray import storage
from ftray.config.serve import EngineConfig, ServeConfig
from ftray.model.folder import fetch
from ftray.serve.engine.engine import EmbeddedEngine
from ftray.serve.engine.limits import EngineLimits
from ftray.serve.outbox import Outbox
from ftray.serve.protocol import (
    AdapterSource,
    Engine,
    EngineInfo,
    EngineStats,
    Generation,
    Piece,
    RefusedError,
)
from ftray.serve.pulls import Pulls
from ftray.serve.spans import Span, open_spans
from ftray.serve.vllm.engine import VllmEngine
from ftray.serve.vllm.options import VllmOptions

Message = list[Piece] | RefusedError | None

_LAST_SECONDS = 0.5  # for the last pieces to reach who waits for them


class EngineReplica:
    """Runs generations of several ingresses, and sends each of them one message a step.

    The pieces of all generations of an ingress travel on the answer to one of its calls, the
    carrier; the answers to the others stay open, silent, until their generation has ended. So
    Serve counts what runs, and waits for it when a replica goes.
    """

    async def __init__(self, config: ServeConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        # Only the engine's own thread computes with several: more of OpenMP's than there are cores
        # would not spin, and an engine on two cores takes twice the time then.
        torch.set_num_threads(1)
        self._engine = await asyncio.to_thread(_engine, config)
        self._info = await self._engine.start()
        self._outboxes: dict[str, Outbox] = {}  # by ingress
        self._owned: dict[str, _Owned] = {}  # by generation
        self._spans = open_spans(config.otlp)
        self._pulls = Pulls(storage.storage_root(config.storage))
        for ref in config.engine.pinned:
            await self._engine.load(await self._pulls.here(ref, pinned=True))
        self._reader = asyncio.create_task(self._read())

    async def generate(
        self, ingress: str, generation: Generation, source: AdapterSource | None
    ) -> AsyncIterator[Message]:
        """Yield None once it is taken, else why not; then what the class says."""
        outbox = self._outboxes.setdefault(ingress, Outbox())
        span = self._spans.begin("generate", "internal", generation.traceparent)
        self._owned[generation.id] = _Owned(outbox, span)
        outbox.open(generation.id, generation.n)
        try:
            if source is not None:
                await self._engine.load(await self._pulls.here(source.name))
            await self._engine.submit(generation)
            span.event("queued")
            yield None
            if outbox.is_carried:
                await outbox.ended(generation.id)
            else:
                async for pieces in outbox.carried():
                    yield pieces
        except RefusedError as error:
            self._end(generation.id, error.code)
            yield error
        finally:
            self.cancel(generation.id)  # where it has not ended

    def cancel(self, id: str) -> None:
        """End a generation, if it is one of ours and still runs."""
        self._end(id, "cancelled")

    def _end(self, id: str, error: str) -> None:
        if owned := self._owned.pop(id, None):
            owned.outbox.close(id)
            owned.end(error)
            self._engine.cancel(id)

    async def info(self) -> EngineInfo:
        """Return what runs here."""
        return self._info

    async def stats(self) -> EngineStats:
        """Return its counts."""
        return self._engine.stats()

    async def check_health(self) -> None:
        """Raise when only another replica helps; Serve then starts one."""
        if self._reader.done() or self._engine.is_dead:
            raise RuntimeError("the engine can do nothing more")

    async def __del__(self) -> None:
        """End what is left; Serve has let running generations end before."""
        await self._engine.drain(0.0)
        await asyncio.sleep(_LAST_SECONDS)
        await self._engine.stop()
        await asyncio.to_thread(self._spans.close)

    async def _read(self) -> None:
        async for pieces in self._engine.pieces():
            for piece in pieces:
                if (owned := self._owned.get(piece.id)) and owned.put(piece):
                    del self._owned[piece.id]


class _Owned:
    """A generation that runs for an ingress, and how long it takes."""

    def __init__(self, outbox: Outbox, span: Span) -> None:
        self.outbox = outbox
        self._span = span
        self._tokens = 0

    def put(self, piece: Piece) -> bool:
        """Send a piece; returns whether it was the last."""
        if piece.tokens and not self._tokens:
            self._span.event("first token")
        self._tokens += len(piece.tokens)
        if is_last := self.outbox.put(piece):
            self.end(piece.error.code if piece.error else None)
        return is_last

    def end(self, error: str | None) -> None:
        self._span.end({"gen_ai.usage.output_tokens": self._tokens}, error)


def _engine(config: ServeConfig) -> Engine:
    folder = fetch(config.model, storage.storage_root(config.storage))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.engine.kind == "vllm":
        return VllmEngine(folder, config.model, _vllm_options(config.engine), device)
    limits, precision = _limits(config.engine), config.engine.base_precision
    return EmbeddedEngine(folder, config.model, limits, device, precision)


def _vllm_options(engine: EngineConfig) -> VllmOptions:
    return VllmOptions(
        python=engine.vllm.python,
        rows=engine.rows,
        waiting=engine.waiting,
        kv_bytes=int(engine.kv_gib * 2**30),
        adapter_bytes=int(engine.adapter_gib * 2**30),
        active_adapters=engine.vllm.active_adapters,
        largest_rank=engine.vllm.largest_rank,
        prefill_tokens=engine.prefill_tokens,
        max_length=engine.max_length,
        eager=engine.vllm.eager,
    )


def _limits(engine: EngineConfig) -> EngineLimits:
    return EngineLimits(
        rows=engine.rows,
        waiting=engine.waiting,
        kv_bytes=int(engine.kv_gib * 2**30),
        adapter_bytes=int(engine.adapter_gib * 2**30),
        prefill_tokens=engine.prefill_tokens,
        max_length=engine.max_length,
        threads=engine.threads or _cores(),
    )


def _cores() -> int:
    """What torch would take by itself, had Ray not set OMP_NUM_THREADS to the actor's num_cpus."""
    here = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(here, psutil.cpu_count(logical=False) or here)
