"""The embedded engine's asyncio side: asks the stepper's thread, and tells what it answers."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import torch

from ftray.config.run import ModelConfig
from ftray.config.serve import BasePrecision
from ftray.errors import ServeError, first_line
from ftray.serve.ends import ends_of
from ftray.serve.engine.bank import AdapterBank
from ftray.serve.engine.base import load_served
from ftray.serve.engine.core import Core, build_core
from ftray.serve.engine.grammar import Grammar
from ftray.serve.engine.job import make_job
from ftray.serve.engine.layers import AdapterLayers
from ftray.serve.engine.ledger import Ledger
from ftray.serve.engine.limits import EngineLimits
from ftray.serve.engine.probe import is_exact
from ftray.serve.engine.source import AdapterWeights, read_adapter
from ftray.serve.protocol import (
    AdapterSource,
    EngineInfo,
    EngineStats,
    Generation,
    Piece,
    RefusedError,
)

logger = logging.getLogger(__name__)

_BATCH_NOTE = "{} is not batch-invariant: an answer may vary with what runs beside it"


class EmbeddedEngine:
    """Continuous batching over one base model and many adapters, in this process.

    One thread owns model, keys and values; everything else here runs on the caller's loop.
    Follows `ftray.serve.protocol.Engine`.
    """

    def __init__(
        self,
        folder: Path,
        model: ModelConfig,
        limits: EngineLimits,
        device: torch.device,
        precision: BasePrecision = "same",
    ) -> None:
        self._folder, self._model, self._limits, self._device = folder, model, limits, device
        self._precision = precision
        self._bank = AdapterBank(limits, self._read, self._publish_adapter, self._remove_adapter)
        self._ledger = Ledger(self._bank.release)
        self._cancelled, self._is_draining = 0, False
        self._started: Core | None = None

    async def start(self) -> EngineInfo:
        """Load the base model; the thread runs from here on."""
        self._loop = asyncio.get_running_loop()
        self._started = await asyncio.to_thread(self._build)
        self._core.stepper.start()
        base = self._core.base
        dtype = str(base.model.dtype).removeprefix("torch.")
        precision = dtype if self._precision == "same" else self._precision
        exact = is_exact(base.model)
        note = () if exact else (_BATCH_NOTE.format(precision),)
        return EngineInfo(
            kind="embedded",
            model=self._model.name,
            max_length=self.max_length,
            dtype=dtype if precision == dtype else f"{precision}, computed in {dtype}",
            is_deterministic=exact,
            notes=(*self._core.notes, *note),
        )

    @property
    def max_length(self) -> int:
        """Tokens of prompt and answer together: the model's, or less if the limits say so."""
        found = [n for n in (self._core.base.max_length, self._limits.max_length) if n is not None]
        return min(found, default=2**20)

    async def load(self, source: AdapterSource) -> None:
        """Make an adapter ready; waits while all that the budget holds are in use."""
        await self._bank.load(source)

    async def submit(self, generation: Generation) -> None:
        """Take it into the queue."""
        self._check(generation)
        grammar: Grammar | None = None
        base = self._core.base
        ends = ends_of(generation, base.ends, base.vocabulary)
        if generation.adapter is not None:
            self._bank.retain(generation.adapter)
        self._ledger.open(generation)
        try:
            if generation.grammar is not None:
                compile = self._core.vocabulary.grammar
                grammar = await asyncio.to_thread(compile, generation.grammar, ends)
        except BaseException:
            self._ledger.drop(generation.id)
            raise
        if generation.id not in self._ledger:
            return  # cancelled while its grammar was compiled
        if generation.max_tokens < 1:
            done = [Piece(generation.id, i, finish="length") for i in range(generation.n)]
            self._ledger.deliver(done)
            return
        job = make_job(generation, base.tokenizer.backend_tokenizer, grammar, ends)
        self._tell(partial(self._core.stepper.submit, job))

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """Yield what each step has added, until the engine stops."""
        async for news in self._ledger.read():
            yield news

    def cancel(self, id: str) -> None:
        """End a generation without a further piece; its place is free before the next step."""
        if id in self._ledger:
            self._cancelled += 1
            self._ledger.drop(id)
            self._tell(partial(self._core.stepper.cancel, id))

    def stats(self) -> EngineStats:
        """Count; what the thread counts may be a step old."""
        work, counts = self._core.stepper.work, self._bank.counts
        return EngineStats(
            rows=work.rows,
            waiting=work.waiting,
            kv_bytes=work.kv_bytes,
            kv_budget=self._limits.kv_bytes,
            adapters=len(self._bank),
            adapter_bytes=self._bank.used,
            adapter_budget=self._limits.adapter_bytes,
            loads=counts.loads,
            load_seconds=counts.load_seconds,
            evictions=counts.evictions,
            thrashes=counts.thrashes,
            steps=work.steps,
            prompt_tokens=work.prompt_tokens,
            answer_tokens=work.answer_tokens,
            cancelled=self._cancelled,
        )

    @property
    def is_dead(self) -> bool:
        """Whether it can do nothing more, and only a new one helps."""
        if self._started is None:
            return False
        return self._core.stepper.is_dead or not self._core.stepper.is_alive()

    async def drain(self, seconds: float) -> None:
        """Refuse what is new, let the rest end, and end what is left with an error piece."""
        self._is_draining = True
        if not await self._ledger.is_idle_within(seconds):
            reason = "the engine is shutting down"
            self._tell(partial(self._core.stepper.fail_all, "draining", reason))
            await self._ledger.is_idle_within(60.0)  # its reader takes the last pieces

    async def stop(self) -> None:
        """End the thread and free everything."""
        self._bank.close()
        if self._started is not None:
            stepper, self._started = self._started.stepper, None
            stepper.tell(stepper.end)
            await asyncio.to_thread(stepper.join)
        self._ledger.end()

    def _build(self) -> Core:
        base = load_served(self._folder, self._model, self._device, self._precision)
        return build_core(base, self._limits, self._tell_loop)

    @property
    def _core(self) -> Core:
        if self._started is None:
            raise ServeError("the engine does not run", "call start first")
        return self._started

    def _check(self, generation: Generation) -> None:
        """Refuse what can be refused at once."""
        if self._is_draining:
            raise RefusedError("the engine is shutting down", code="draining")
        if self.is_dead:
            raise RefusedError("the engine has died", "restart it")
        if generation.id in self._ledger:
            raise RefusedError(f"there is already a generation '{generation.id}'")
        if len(self._ledger) >= self._limits.rows + self._limits.waiting:
            raise RefusedError(f"{self._limits.waiting} generations wait", code="queue_full")
        self._core.check(generation, self.max_length)

    def _tell(self, command: Callable[[], None]) -> None:
        self._core.stepper.tell(command)

    def _tell_loop(self, pieces: list[Piece]) -> None:
        """On the stepper's thread."""
        self._loop.call_soon_threadsafe(self._ledger.deliver, pieces)

    def _read(self, source: AdapterSource) -> AdapterWeights:
        """In a thread of its own."""
        layers, model = self._core.layers, self._core.base.model
        return read_adapter(Path(source.folder), source.digest, layers.shapes, model.dtype)

    async def _publish_adapter(self, weights: AdapterWeights) -> None:
        """Between two steps; returns when it is done."""
        done: asyncio.Future[None] = self._loop.create_future()

        self._tell(partial(self._publish_now, self._core.layers, weights, done))
        await done

    def _publish_now(
        self, layers: AdapterLayers, weights: AdapterWeights, done: asyncio.Future[None]
    ) -> None:
        """On the stepper's thread."""
        try:
            layers.publish(weights)
        except RuntimeError as error:  # what torch says without memory
            failure = RefusedError(f"it cannot be placed: {first_line(error)}", code="bad_adapter")
            self._loop.call_soon_threadsafe(_settle, done, failure)
        else:
            self._loop.call_soon_threadsafe(_settle, done, None)

    def _remove_adapter(self, digest: str) -> None:
        self._tell(partial(self._core.layers.remove, digest))


def _settle(done: asyncio.Future[None], failure: RefusedError | None) -> None:
    if done.done():
        return
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)
