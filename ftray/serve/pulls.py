"""Adapter versions on the disk of a replica's own machine, which may not be that of the HTTP side.

The registry is the truth: each replica pulls what it is asked for at its first use, so one that is
started later, or on another machine, needs to be told of nothing.
"""

import asyncio

from ftray import registry, storage
from ftray.errors import RegistryError, StorageError
from ftray.serve.protocol import AdapterSource, Refusal, RefusedError


class Pulls:
    """Pulls each version once; of several callers one does it."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._pulled: dict[str, asyncio.Task[AdapterSource]] = {}  # by reference

    async def here(self, ref: str, *, pinned: bool = False) -> AdapterSource:
        """Return a version (`name@3`, or what means one now) with its files, fetched and verified.

        RefusedError where it is damaged or gone, or where the storage does not answer.
        """
        pull = self._pulled.get(ref)
        if pull is None:
            work = asyncio.to_thread(self._pull, ref, pinned)
            pull = self._pulled[ref] = asyncio.create_task(work)
        try:
            return await asyncio.shield(pull)  # others wait for it as well
        except (RegistryError, StorageError) as error:
            if self._pulled.get(ref) is pull:
                del self._pulled[ref]
            code: Refusal = "lost" if isinstance(error, StorageError) else "bad_adapter"
            raise RefusedError(error.message, error.hint, code) from None

    def _pull(self, ref: str, pinned: bool) -> AdapterSource:
        """In a thread."""
        record = registry.resolve(self._root, ref)
        folder = registry.fetch_adapter(self._root, record, storage.local_cache(self._root))
        return AdapterSource(record.digest, str(folder), record.ref, pinned)
