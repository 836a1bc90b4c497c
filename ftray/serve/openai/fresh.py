"""Values read from storage in threads, that are never shown older than so many seconds."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_AGE = 1.0  # seconds from the beginning of a read
_RENEW = 0.5  # of it, from which a value in use is read again meanwhile, so that nobody waits


@dataclass
class _Read(Generic[T]):
    started: float
    value: asyncio.Future[T]
    next: "_Read[T] | None" = None


class Fresh(Generic[T]):
    """A cache of `read(key)`, failures included; of one key one read runs at a time."""

    def __init__(
        self, read: Callable[[str], T], max_age: float = MAX_AGE, room: int = 4096
    ) -> None:
        self._read = read
        self._max_age = max_age
        self._room = room
        self._reads: OrderedDict[str, _Read[T]] = OrderedDict()
        self._threads = ThreadPoolExecutor(8, "ftray-registry")  # tokenizing has others

    async def get(self, key: str) -> T:
        """Return the value, or raise what reading it has raised."""
        now = time.monotonic()
        read = self._reads.get(key)
        if read is not None and read.next is not None and read.next.value.done():
            read = read.next
        if read is not None and now - read.started >= self._max_age:
            read = read.next
        if read is None or now - read.started >= self._max_age:
            read = self._begin(key, now)
        elif now - read.started >= _RENEW * self._max_age and read.next is None:
            read.next = self._begin(key, now)
        self._keep(key, read)
        return await asyncio.shield(read.value)  # others wait for it as well

    def forget(self) -> None:
        """Read everything anew, after a change that we have made ourselves."""
        self._reads.clear()

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False)

    def _begin(self, key: str, now: float) -> _Read[T]:
        value = asyncio.get_running_loop().run_in_executor(self._threads, self._read, key)
        value.add_done_callback(_looked_at)
        return _Read(now, value)

    def _keep(self, key: str, read: _Read[T]) -> None:
        self._reads[key] = read
        self._reads.move_to_end(key)
        while len(self._reads) > self._room:
            self._reads.popitem(last=False)


def _looked_at(value: asyncio.Future[T]) -> None:
    """Take note of a failure that nobody waits for; who asks next gets it all the same."""
    if not value.cancelled():
        value.exception()
