"""vLLM behind our own protocol: a server of its own that is supervised, asked, and ended."""

import asyncio
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ftray.config.run import ModelConfig
from ftray.errors import ServeError
from ftray.serve.ends import ends_of
from ftray.serve.engine.ledger import Ledger
from ftray.serve.protocol import (
    AdapterSource,
    EngineInfo,
    EngineStats,
    Generation,
    Piece,
    RefusedError,
)
from ftray.serve.vllm.admission import Admission
from ftray.serve.vllm.answers import AnswerReader
from ftray.serve.vllm.arguments import server_arguments
from ftray.serve.vllm.base import VllmBase, read_base
from ftray.serve.vllm.client import SERVED_NAME
from ftray.serve.vllm.copies import write_copy, write_nothing
from ftray.serve.vllm.options import VllmOptions, find_python, padded_rank
from ftray.serve.vllm.server import VllmServer, start_server
from ftray.serve.vllm.shelf import Shelf
from ftray.serve.vllm.streams import Streams
from ftray.serve.vllm.supervisor import Supervisor
from ftray.serve.vllm.wishes import completion_body

logger = logging.getLogger(__name__)

_NOTHING = "nothing"  # the name of an adapter of zeros
_NOTE = "vLLM batches by kernels of its own: an answer may vary with what runs beside it"


@dataclass(frozen=True)
class _Running:
    """What there is from `start` to `stop`."""

    base: VllmBase
    shelf: Shelf
    ledger: Ledger
    streams: Streams
    supervisor: Supervisor
    work: Path
    python: Path
    arguments: list[str]

    @property
    def base_name(self) -> str:
        """What a generation without adapter asks for."""
        return _NOTHING if self.base.needs_nothing_adapter else SERVED_NAME


class VllmEngine:
    """A `vllm serve` in another environment. Follows `ftray.serve.protocol.Engine`.

    Owns the process, a folder with its socket and log, and copies of adapters in vLLM's form.
    vLLM owns weights, keys and values, and the order in which what was submitted runs.
    """

    def __init__(
        self, folder: Path, model: ModelConfig, options: VllmOptions, device: torch.device
    ) -> None:
        self._folder, self._model, self._device = folder.absolute(), model, device
        self._options = replace(options, largest_rank=padded_rank(options.largest_rank))
        self._cancelled, self._is_draining = 0, False
        self._running: _Running | None = None

    async def start(self) -> EngineInfo:
        """Start the server and wait until it answers: a minute, longer when it compiles."""
        python = find_python(self._options)
        base = await asyncio.to_thread(read_base, self._folder, self._model, self._device)
        self._running = self._prepare(python, base)
        try:
            await self._running.supervisor.start()
            longest = await self._running.supervisor.client.max_length()
        except BaseException:
            await self._end()
            raise
        limit = self._options.rows + self._options.waiting
        self._admission = Admission(longest, base.size, limit)
        is_exact = base.dtype == torch.float32 and self._device.type == "cpu"
        return EngineInfo(
            kind="vllm",
            model=self._model.name,
            max_length=longest,
            dtype=str(base.dtype).removeprefix("torch."),
            is_deterministic=is_exact,
            notes=() if is_exact else (_NOTE,),
        )

    async def load(self, source: AdapterSource) -> None:
        """Make an adapter ready; waits while all that there is room for are in use."""
        _ = self._now.supervisor.client  # refuses while there is none
        await self._now.shelf.load(source)

    async def submit(self, generation: Generation) -> None:
        """Hand it to the server; what that refuses after all comes as a piece."""
        now = self._now
        self._check(generation)
        client = now.supervisor.client
        ends = ends_of(generation, now.base.ends, now.base.size)
        if generation.adapter is not None:
            now.shelf.retain(generation.adapter)
        now.ledger.open(generation)
        try:
            if generation.grammar is not None:
                await asyncio.to_thread(now.base.vocabulary.grammar, generation.grammar, ends)
            body = completion_body(generation, ends, now.base_name)
        except BaseException:
            now.ledger.drop(generation.id)
            raise
        if generation.id not in now.ledger:
            return  # cancelled while its grammar was compiled
        if generation.max_tokens < 1:
            none = [Piece(generation.id, i, finish="length") for i in range(generation.n)]
            now.streams.tell(none)
            return
        now.streams.run(generation, client, body, AnswerReader(generation, now.base, ends))

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """Yield what came in one turn of the loop, of all streams, until the engine stops."""
        async for news in self._now.ledger.read():
            yield news

    def cancel(self, id: str) -> None:
        """End it without a further piece: its stream is closed, and vLLM ends it with its step."""
        if id in self._now.ledger:
            self._cancelled += 1
            self._now.ledger.drop(id)
            self._now.streams.cancel(id)

    def stats(self) -> EngineStats:
        """Count; keys and values are reckoned from tokens, vLLM takes whole blocks."""
        now, options = self._now, self._options
        rows = min(len(now.ledger), options.rows)
        counts, streams = now.shelf.counts, now.streams.counts
        return EngineStats(
            rows=rows,
            waiting=len(now.ledger) - rows,
            kv_bytes=min(now.streams.tokens * now.base.cache_bytes, options.kv_bytes),
            kv_budget=options.kv_bytes,
            adapters=len(now.shelf),
            adapter_bytes=now.shelf.bytes,
            adapter_budget=now.shelf.room * now.base.adapter_bytes(options.largest_rank),
            loads=counts.loads,
            load_seconds=counts.load_seconds,
            evictions=counts.evictions,
            thrashes=counts.thrashes,
            steps=streams.steps,
            prompt_tokens=streams.prompt_tokens,
            answer_tokens=streams.answer_tokens,
            cancelled=self._cancelled,
        )

    @property
    def is_dead(self) -> bool:
        """Whether its server has failed too often in a row."""
        return self._running is not None and self._running.supervisor.is_dead

    async def drain(self, seconds: float) -> None:
        """Refuse what is new, let the rest end, and end what is left with an error piece."""
        self._is_draining = True
        if self._running is None or await self._running.ledger.is_idle_within(seconds):
            return
        late = RefusedError("the engine is shutting down", code="draining")
        self._running.streams.fail_all(late)

    async def stop(self) -> None:
        """End the server, everything that it has started, and its folder."""
        if self._running is not None:
            work = self._running.work
            await self._end()
            await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)

    async def _end(self) -> None:
        """Leave the folder: after a start that has failed, its log is what is needed."""
        now, self._running = self._now, None
        now.shelf.close()
        now.streams.fail_all(RefusedError("the engine has been stopped", code="draining"))
        await now.supervisor.stop()
        now.ledger.end()

    def _prepare(self, python: Path, base: VllmBase) -> _Running:
        options = self._options
        fits = options.adapter_bytes // base.adapter_bytes(options.largest_rank)
        room = max(options.active_adapters, fits)
        shelf = Shelf(options, room, self._place, self._remove)
        ledger = Ledger(shelf.release)
        return _Running(
            base=base,
            shelf=shelf,
            ledger=ledger,
            streams=Streams(ledger),
            supervisor=Supervisor(self._launch, self._lose, self._fill, options),
            work=Path(tempfile.mkdtemp(prefix="ftray-vllm-")),
            python=python,
            arguments=server_arguments(self._folder, self._model, options, base, room),
        )

    @property
    def _now(self) -> _Running:
        if self._running is None:
            raise ServeError("the engine does not run", "call start first")
        return self._running

    def _check(self, generation: Generation) -> None:
        now = self._now
        if self._is_draining:
            raise RefusedError("the engine is shutting down", code="draining")
        if self.is_dead:
            raise RefusedError("vLLM has failed too often", "restart the engine")
        if generation.id in now.ledger:
            raise RefusedError(f"there is already a generation '{generation.id}'")
        self._admission.check(generation, len(now.ledger))

    async def _launch(self) -> VllmServer:
        now = self._now
        return await start_server(now.python, now.arguments, now.work, self._options)

    def _lose(self, reason: str) -> None:
        """The server has ended; nothing that it held is there any more."""
        now = self._now
        now.streams.fail_all(RefusedError(reason, "it is being restarted: try again", code="lost"))
        now.shelf.forget()

    async def _fill(self) -> None:
        """A new server holds what has to be there always."""
        now, folder = self._now, self._now.work / _NOTHING
        if now.base.needs_nothing_adapter:
            await asyncio.to_thread(write_nothing, folder, now.base.shapes)
            await now.supervisor.client.load(_NOTHING, folder)
        for source in now.shelf.pinned:
            try:
                await now.shelf.load(source)
            except RefusedError as error:
                logger.warning("a pinned adapter cannot be loaded again: %s", error)

    async def _place(self, source: AdapterSource) -> int:
        """Write the copy unless it is there (of an earlier server), and have it loaded."""
        now, rank = self._now, self._options.largest_rank
        client, copy = now.supervisor.client, now.work / "adapters" / source.digest
        if not (copy / "adapter_config.json").exists():
            make = (Path(source.folder), copy, now.base.shapes, rank)
            await asyncio.to_thread(write_copy, *make)
        await client.load(source.digest, copy)
        size = (copy / "adapter_model.safetensors").stat().st_size
        return size // torch.float32.itemsize * now.base.dtype.itemsize  # as the server holds it

    async def _remove(self, digest: str) -> None:
        """Forget the name and delete the copy: nothing runs with it."""
        now = self._now
        await now.supervisor.client.unload(digest)
        await asyncio.to_thread(shutil.rmtree, now.work / "adapters" / digest, ignore_errors=True)
