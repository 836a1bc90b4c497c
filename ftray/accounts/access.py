"""Access by API key: who asks, within which limits, and what was used.

Matches the protocols of `ftray.serve.openai.access`. Requests are answered from memory. A thread
carries counts to the database once a second and reads the keys every two, so a revoked key opens
nothing after 2 seconds, and a kill loses at most what was used in the last one.
"""

import atexit
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from ftray.accounts.database import Database
from ftray.accounts.grant import SCOPES
from ftray.accounts.keyring import Keyring
from ftray.accounts.keys import note_used
from ftray.accounts.ledger import Entry, enter
from ftray.accounts.rates import Admission, Rates, exchange
from ftray.accounts.secret import parse_secret
from ftray.accounts.tally import Count, Tally
from ftray.errors import StorageError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """Whose key came with a request; `key` is empty for somebody who needs none."""

    key: str = ""
    project: str = ""
    scopes: frozenset[str] = frozenset(SCOPES)
    models: frozenset[str] | None = None  # None: all


class KeyAccess:
    """Lets keys in, holds them to their limits, and keeps the ledger: start, then close it.

    `open_until_first_key`: everybody may do everything as long as no key has ever been made.
    `every`: seconds between two exchanges with the database.
    """

    def __init__(
        self,
        database: Database,
        *,
        open_until_first_key: bool = False,
        clock: Callable[[], float] = time.time,
        every: float = 1.0,
    ) -> None:
        self._database = database
        self._is_open_at_first = open_until_first_key
        self._clock = clock
        self._every = every
        self._keyring = Keyring(database, pause=min(0.25, every / 4))
        self._rates = Rates()
        self._ledger: Tally[Entry] = Tally()
        self._seen: dict[str, float] = {}
        self._is_away = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ftray-accounts", daemon=True)

    def start(self) -> None:
        """Read the keys, and go on reading and writing in a thread."""
        self._keyring.read()
        self._thread.start()
        atexit.register(self.close)

    def close(self) -> None:
        """Write what is left, and stop; a second time nothing happens."""
        if not self._thread.is_alive():
            return
        self._stop.set()
        self._thread.join()
        atexit.unregister(self.close)
        if self._is_away:
            logger.error("what was used since then is not in the ledger: %s", self._database)

    async def authenticate(self, secret: str | None) -> Caller | None:
        """Whose secret it is; None: nobody's, revoked or expired. `secret` None: none was sent.

        Raises StorageError when nothing has been heard of the keys for minutes.
        """
        if self._is_open_at_first and self._keyring.is_empty():
            return Caller()
        sent = parse_secret(secret or "")
        if sent is None:
            return None
        if self._keyring.find(sent.id) is None:  # perhaps it was made a moment ago
            await self._keyring.read_again()
        held = self._keyring.find(sent.id)
        now = self._clock()
        if held is None or not sent.matches(held.digest) or not held.key.is_valid(now):
            return None
        self._seen[sent.id] = now
        key = held.key
        models = None if key.models is None else frozenset(key.models)
        return Caller(key.id, key.project, frozenset(key.scopes), models)

    def admit(self, key: str, tokens: int) -> Admission:
        """Count a request and reserve the tokens that it may take at most."""
        held = self._keyring.find(key)
        return Admission() if held is None else self._rates.admit(held.key, tokens, self._clock())

    def used(self, key: str, model: str, reserved: int, prompt: int, answer: int) -> None:
        """Give back what was reserved and not used, and enter the rest in the ledger.

        Once for each admitted request; without a model nothing was run, and nothing is entered.
        """
        if not key:
            return
        now = self._clock()
        self._rates.settle(key, reserved, prompt + answer, now)
        if model:
            day = datetime.fromtimestamp(now, UTC).date()
            self._ledger.add(Entry(key, model, day), Count(1, prompt, answer))

    def _run(self) -> None:
        round_ = 0
        while not self._stop.wait(self._every):
            round_ += 1
            self._meet(reads=round_ % 2 == 0)
        self._meet(reads=False)

    def _meet(self, *, reads: bool) -> None:
        """One exchange with the database; what fails is tried again a second later."""
        try:
            self._write()
            if reads:
                self._keyring.read()
        except StorageError as error:
            if not self._is_away:
                logger.warning("counting goes on without the accounts' database: %s", error)
            self._is_away = True
            return
        if self._is_away:
            logger.info("the accounts' database is back")
        self._is_away = False

    def _write(self) -> None:
        used, taken = self._ledger.take(), self._rates.take()
        seen, self._seen = dict(self._seen), {}
        now = self._clock()
        try:
            if used or taken or seen:
                with self._database.writing() as session:
                    enter(session, self._database, used)
                    note_used(session, seen)
                    shared = exchange(session, self._database, taken, now)
            else:
                with self._database.reading() as session:
                    shared = exchange(session, self._database, {}, now)
        except BaseException:
            self._ledger.returned()
            self._rates.returned()
            self._seen = seen | self._seen
            raise
        self._ledger.arrived()
        self._rates.arrived(shared)
