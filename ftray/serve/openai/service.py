"""What the routes need of the rest of the server."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ftray.registry import AdapterRecord
from ftray.serve.openai.access import Access, OpenAccess, Principal
from ftray.serve.openai.metrics import Metrics
from ftray.serve.openai.prompts import Prompts
from ftray.serve.protocol import AdapterSource, EngineInfo, EngineStats, Generation, Piece
from ftray.serve.spans import NoSpans, Spans


class Engines(Protocol):
    """Where generations run."""

    async def generate(
        self, generation: Generation, source: AdapterSource | None
    ) -> AsyncIterator[list[Piece]]:
        """Load the adapter and submit; then return the pieces of this generation alone.

        Raises RefusedError where the engine does not take it. The iterator ends after the last
        choice's `finish` or after an `error`.
        """
        ...

    def cancel(self, id: str) -> None:
        """End a generation; one that has ended is no error."""
        ...

    async def info(self) -> EngineInfo | None:
        """Return what runs; None while it is starting."""
        ...

    async def stats(self) -> EngineStats | None:
        """Return its counts; None while it is starting."""
        ...


@dataclass(frozen=True)
class Resolved:
    """The one version that a model id means for one request."""

    model: str  # the adapter's name or the base's: a label
    version: str  # `name@3`, or the base's name
    record: AdapterRecord | None  # None: the base
    source: AdapterSource | None
    tokenizer: Path  # the folder of its tokenizer and template
    tokenizer_digest: str
    ends: tuple[int, ...] | None = None  # that its configs name; None: its tokenizer is the base's
    shadow: str | None = None  # the version that gets a copy

    @property
    def digest(self) -> str:
        """The adapter's content, empty for the base."""
        return self.record.digest if self.record else ""


@dataclass(frozen=True)
class ModelCard:
    """A model as `/v1/models` shows it."""

    id: str
    name: str  # whose permission it needs
    created: int
    owned_by: str
    base: str | None = None  # the base's name; None: it is the base
    version: str | None = None
    project: str | None = None  # whose keys may see it; None: everybody's


class Models(Protocol):
    """Which models there are. Its methods do not block the event loop."""

    async def resolve(self, id: str, sticky: str) -> Resolved:
        """Find the version; `sticky` decides alike for the same user where an alias is split.

        Raises RegistryError when there is none, ServeError when it cannot be served here, and
        StorageError when the storage cannot be read.
        """
        ...

    async def cards(self) -> list[ModelCard]:
        """Return all models."""
        ...

    async def card(self, id: str) -> ModelCard:
        """Return one model; raises as `resolve` does."""
        ...

    async def delete(self, id: str) -> None:
        """Delete one version; raises RegistryError when that cannot be."""
        ...


@dataclass(frozen=True)
class Settings:
    """Limits of the HTTP side."""

    max_body_bytes: int = 8 * 2**20
    deadline_seconds: float = 600  # of a whole generation
    ping_seconds: float = 10  # after which a waiting client hears that the server lives
    reserved_answer: int = 512  # tokens counted against a limit where `max_tokens` is not given
    sends_ids: bool = True  # in x-request-id; False: who is in front does, as Serve's proxy
    max_shadows: int = 16  # copies running at once; what is more is dropped


@dataclass
class Service:
    """Everything that the routes work with; `is_draining` is set when the server goes away."""

    engines: Engines
    models: Models
    access: Access = field(default_factory=OpenAccess)
    prompts: Prompts = field(default_factory=Prompts)
    metrics: Metrics = field(default_factory=Metrics)
    spans: Spans = field(default_factory=NoSpans)
    settings: Settings = field(default_factory=Settings)
    clock: Callable[[], float] = time.time
    is_draining: bool = False
    on_delete: Callable[[Principal, str], Awaitable[None]] | None = None  # told of deleted models
    shadows: set[asyncio.Task[None]] = field(default_factory=set)  # copies that are running
