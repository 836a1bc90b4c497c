"""Which adapters are resident: loaded once, counted, and evicted only when nothing uses them."""

import asyncio
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ftray.errors import FtrayError
from ftray.serve.engine.failures import Failures
from ftray.serve.engine.limits import EngineLimits
from ftray.serve.engine.source import AdapterWeights
from ftray.serve.protocol import AdapterSource, RefusedError

logger = logging.getLogger(__name__)

_AT_ONCE = 2  # loads; more would hold files' contents without having room for them


@dataclass
class Resident:
    """An adapter in memory."""

    bytes: int
    pinned: bool
    users: int = 0  # generations, waiting ones too
    leases: int = 0  # loads that no generation has followed yet
    leased_until: float = 0.0

    def is_idle(self, now: float) -> bool:
        """Whether it may be evicted."""
        return not (self.pinned or self.users or (self.leases and now < self.leased_until))


@dataclass
class BankCounts:
    """What the bank has done."""

    loads: int = 0
    load_seconds: float = 0.0
    evictions: int = 0
    thrashes: int = 0


class AdapterBank:
    """Runs on the engine's asyncio loop; `read` blocks and is called in a thread."""

    def __init__(
        self,
        limits: EngineLimits,
        read: Callable[[AdapterSource], AdapterWeights],
        publish: Callable[[AdapterWeights], Awaitable[None]],
        remove: Callable[[str], None],
    ) -> None:
        self.counts, self.used = BankCounts(), 0
        self._limits, self._read, self._publish, self._remove = limits, read, publish, remove
        self._residents: OrderedDict[str, Resident] = OrderedDict()  # least recently used first
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._failures = Failures(limits.failure_seconds)
        self._evicted: dict[str, float] = {}
        self._places, self._freed = asyncio.Semaphore(_AT_ONCE), asyncio.Event()

    def __len__(self) -> int:
        return len(self._residents)

    async def load(self, source: AdapterSource) -> None:
        """Have it resident, for a lease at least; of several callers one reads."""
        digest = source.digest
        while digest not in self._residents:  # it may be evicted before its caller wakes up
            self._failures.refuse_again(digest)
            if digest not in self._loading:
                self._loading[digest] = asyncio.create_task(self._load(source))
            await asyncio.shield(self._loading[digest])  # a caller who leaves does not end it
        resident = self._residents[digest]
        resident.pinned |= source.pinned
        resident.leases += 1
        resident.leased_until = time.monotonic() + self._limits.lease_seconds

    def retain(self, digest: str) -> None:
        """Keep it until `release`."""
        if digest not in self._residents:
            raise RefusedError(f"adapter {digest} is not loaded", "load it", code="bad_adapter")
        resident = self._residents[digest]
        resident.users += 1
        resident.leases = max(0, resident.leases - 1)
        self._residents.move_to_end(digest)

    def release(self, digest: str) -> None:
        """One user less."""
        self._residents[digest].users -= 1
        self._freed.set()

    def close(self) -> None:
        """End the loads that run."""
        for task in self._loading.values():
            task.cancel()

    async def _load(self, source: AdapterSource) -> None:
        start = time.monotonic()
        try:
            async with self._places:
                weights = await asyncio.to_thread(self._read, source)
                await self._make_room(weights.bytes, source)
                await self._place(weights)
        except (FtrayError, OSError, ValueError, TypeError, KeyError, re.error) as error:
            raise self._failures.remembered(
                source, error
            ) from None  # whatever a broken file makes PEFT say
        finally:
            del self._loading[source.digest]
        now = time.monotonic()
        self._residents[source.digest] = Resident(weights.bytes, source.pinned)
        self.counts.loads += 1
        self.counts.load_seconds += now - start
        since = now - self._evicted.pop(source.digest, -float("inf"))
        self.counts.thrashes += since < self._limits.thrash_seconds

    async def _make_room(self, size: int, source: AdapterSource) -> None:
        budget = self._limits.adapter_bytes
        if size > budget:
            what = f"it takes {size:,} bytes, all adapters together may take {budget:,}"
            raise RefusedError(what, code="bad_adapter")
        while self.used + size > budget:
            pinned = sum(r.bytes for r in self._residents.values() if r.pinned)
            if pinned + size > budget:
                what = f"it takes {size:,} bytes, {pinned:,} of {budget:,} are of pinned adapters"
                raise RefusedError(what, code="bad_adapter")
            now = time.monotonic()
            idle = [digest for digest, r in self._residents.items() if r.is_idle(now)]
            if idle:
                self._evict(idle[0])
                continue
            logger.info("adapter %s waits: all that are resident are in use", source.digest)
            await self._wait_for_idle(now)
        self.used += size

    async def _place(self, weights: AdapterWeights) -> None:
        try:
            await self._publish(weights)
        except BaseException:
            self.used -= weights.bytes
            raise

    async def _wait_for_idle(self, now: float) -> None:
        """Until a generation ends or a lease does."""
        self._freed.clear()
        ends = [r.leased_until - now for r in self._residents.values() if r.leases and not r.users]
        timeout = max(min(ends, default=1.0), 0.0) + 0.01
        try:
            await asyncio.wait_for(self._freed.wait(), timeout)
        except TimeoutError:
            return

    def _evict(self, digest: str) -> None:
        self.used -= self._residents.pop(digest).bytes
        self._remove(digest)
        self.counts.evictions += 1
        now = time.monotonic()
        recent = {d: t for d, t in self._evicted.items() if now - t < self._limits.thrash_seconds}
        self._evicted = {**recent, digest: now}
