"""Which adapters the server holds: as many as it has places for, the least recently used goes."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ftray.errors import FtrayError
from ftray.serve.engine.bank import BankCounts
from ftray.serve.engine.failures import Failures
from ftray.serve.protocol import AdapterSource, RefusedError
from ftray.serve.vllm.options import VllmOptions


@dataclass
class Held:
    """An adapter that the server knows."""

    bytes: int
    users: int = 0  # generations that run
    leased_until: float = 0.0  # for the generation that has asked for it

    def is_idle(self) -> bool:
        """Whether nothing uses it."""
        return not self.users and time.monotonic() > self.leased_until


class Shelf:
    """Counted here, because vLLM's own unload frees nothing: it only forgets the name.

    `place` makes the server load an adapter and returns its size; `remove` makes it forget one.
    """

    def __init__(
        self,
        options: VllmOptions,
        room: int,
        place: Callable[[AdapterSource], Awaitable[int]],
        remove: Callable[[str], Awaitable[None]],
    ) -> None:
        self.counts, self.room = BankCounts(), room
        self._options, self._place, self._remove = options, place, remove
        self._held: OrderedDict[str, Held] = OrderedDict()  # least recently used first
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._failures = Failures(options.failure_seconds)
        self._evicted: dict[str, float] = {}
        self._pins: dict[str, AdapterSource] = {}
        self._turn, self._freed = asyncio.Lock(), asyncio.Event()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def bytes(self) -> int:
        """Of all that are held."""
        return sum(held.bytes for held in self._held.values())

    @property
    def pinned(self) -> list[AdapterSource]:
        """Those that must be there always: also what `forget` has made the server lose."""
        return list(self._pins.values())

    async def load(self, source: AdapterSource) -> None:
        """Have it held, for a lease at least; of several callers one loads."""
        digest = source.digest
        while digest not in self._held:  # it may be evicted before its caller wakes up
            self._failures.refuse_again(digest)
            if digest not in self._loading:
                self._loading[digest] = asyncio.create_task(self._load(source))
            await asyncio.shield(self._loading[digest])  # a caller who leaves does not end it
        held = self._held[digest]
        if source.pinned:
            self._pins[digest] = source
        held.leased_until = time.monotonic() + self._options.lease_seconds

    def retain(self, digest: str) -> None:
        """Keep it until `release`."""
        if digest not in self._held:
            raise RefusedError(f"adapter {digest} is not loaded", "load it", code="bad_adapter")
        self._held[digest].users += 1
        self._held.move_to_end(digest)

    def release(self, digest: str) -> None:
        """One user less; after `forget` there may be none."""
        if held := self._held.get(digest):
            held.users -= 1
            self._freed.set()

    def forget(self) -> None:
        """The server that held them is gone, and with it all generations."""
        self._held.clear()
        self._freed.set()

    def close(self) -> None:
        """End the loads that run."""
        for task in self._loading.values():
            task.cancel()

    async def _load(self, source: AdapterSource) -> None:
        try:
            async with self._turn:
                await self._make_room()
                start = time.monotonic()
                size = await self._place(source)
                lease = time.monotonic() + self._options.lease_seconds
                self._held[source.digest] = Held(size, leased_until=lease)
        except (FtrayError, OSError, ValueError, TypeError, KeyError) as error:
            raise self._refusal(source, error) from None  # whatever a broken file makes PEFT say
        finally:
            del self._loading[source.digest]
        now = time.monotonic()
        self.counts.loads += 1
        self.counts.load_seconds += now - start
        since = now - self._evicted.pop(source.digest, -float("inf"))
        self.counts.thrashes += since < self._options.thrash_seconds

    async def _make_room(self) -> None:
        while len(self._held) >= self.room:
            if len(self._pins) >= self.room:
                what = f"all {self.room} places are of pinned adapters"
                raise RefusedError(what, code="bad_adapter")
            idle = self._idle()
            if idle is None:
                await self._wait_for_idle()
                continue
            del self._held[idle]  # first: who asks for it meanwhile waits for a new load
            self.counts.evictions += 1
            self._note_eviction(idle)
            await self._remove(idle)

    def _idle(self) -> str | None:
        """Return the least recently used one that may go."""
        free = (name for name, held in self._held.items() if held.is_idle())
        return next((name for name in free if name not in self._pins), None)

    async def _wait_for_idle(self) -> None:
        """Until a generation ends, or a lease may have done so."""
        self._freed.clear()
        try:
            await asyncio.wait_for(self._freed.wait(), 0.2)
        except TimeoutError:
            return

    def _note_eviction(self, digest: str) -> None:
        now = time.monotonic()
        keep = self._options.thrash_seconds
        recent = {name: when for name, when in self._evicted.items() if now - when < keep}
        self._evicted = {**recent, digest: now}

    def _refusal(self, source: AdapterSource, error: Exception) -> RefusedError:
        """Remembered, unless it is the server's failure and not the adapter's."""
        if isinstance(error, RefusedError) and error.code == "lost":
            return error
        return self._failures.remembered(source, error)
