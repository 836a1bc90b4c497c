"""The keyring: all keys as a serving process knows them, read again every few seconds."""

import asyncio
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from ftray.accounts.database import Database
from ftray.accounts.grant import Key
from ftray.accounts.keys import key_of
from ftray.accounts.tables import KeyRow
from ftray.errors import StorageError


@dataclass(frozen=True)
class Held:
    """A key and what its secret is recognized by."""

    key: Key
    digest: str


class Keyring:
    """Keys by id. Threads may share it: each reading replaces the whole.

    `pause`: least seconds between two readings for the sake of an unknown key.
    """

    def __init__(self, database: Database, pause: float) -> None:
        self._database = database
        self._pause = pause
        self._held: Mapping[str, Held] = {}
        self._mark: tuple[object, ...] = ()
        self._read = float("-inf")
        self._lock = threading.Lock()
        self._again = asyncio.Lock()

    def find(self, id: str) -> Held | None:
        """Return a key as it was read last; StorageError if that was too long ago to be trusted."""
        self._check_age()
        return self._held.get(id)

    def is_empty(self) -> bool:
        """Whether no key was ever made; StorageError as `find`."""
        self._check_age()
        return not self._held

    def read(self) -> None:
        """Read all keys, if any has changed: expired and revoked ones too, for those were made."""
        with self._lock, self._database.reading() as session:
            begun = time.monotonic()
            # a key is made and revoked, and never edited: that changes one of these
            facts = sa.func.count(), sa.func.count(KeyRow.revoked), sa.func.max(KeyRow.created)
            mark = tuple(session.execute(sa.select(*facts)).one())
            if mark != self._mark:
                rows = session.scalars(sa.select(KeyRow))
                self._held = {row.id: Held(key_of(row), row.digest) for row in rows}
            self._mark, self._read = mark, begun

    async def read_again(self) -> None:
        """Read them once more, for a key that may have been made a moment ago.

        Who asks for unknown keys waits for the next reading, together with all others who do:
        guessed ids keep neither the database nor a thread busy.
        """
        asked = time.monotonic()
        async with self._again:
            if self._read < asked:
                await asyncio.sleep(max(0.0, self._read + self._pause - asked))
            if self._read < asked:
                await asyncio.to_thread(self.read)

    def _check_age(self) -> None:
        age = time.monotonic() - self._read
        if age > _TRUST:
            raise StorageError(
                f"database {self._database}: not reached for {age:.0f} s, so which keys are valid "
                "is not known",
                "check that it runs",
            )


_TRUST = 300.0  # seconds without the database in which the keys that were read go on being valid
