"""Leases and locks: what only one process at a time may do, as the database sees it."""

import time

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ftray.accounts.database import Database
from ftray.service.tables import LeaseRow


def lock(database: Database, session: Session, name: str) -> LeaseRow:
    """Let other writers that ask for the same name wait until this transaction has ended."""
    new = database.insert(LeaseRow).values(name=name, holder="", until=0.0)
    session.execute(new.on_conflict_do_nothing())
    query = sa.select(LeaseRow).where(LeaseRow.name == name).with_for_update()
    return session.scalars(query).one()


class LostLeaseError(Exception):
    """Another process has it now."""


class Lease:
    """One of several processes holds it, and has to say so again before it has run out."""

    def __init__(self, database: Database, name: str, holder: str, seconds: float) -> None:
        self._database = database
        self._name = name
        self._holder = holder
        self._seconds = seconds

    def hold(self) -> bool:
        """Take the lease or prolong it; False: another process has it."""
        with self._database.writing() as session:
            row = lock(self._database, session, self._name)
            now = time.time()
            if row.holder != self._holder and now < row.until:
                return False
            row.holder, row.until = self._holder, now + self._seconds
            return True

    def check(self, session: Session) -> None:
        """Raise LostLeaseError unless this process holds it, and will until the transaction ends.

        A process that was stopped for a while learns here that its work is another's now.
        """
        row = lock(self._database, session, self._name)
        if row.holder != self._holder:
            raise LostLeaseError

    def release(self) -> None:
        """Let others have it at once."""
        with self._database.writing() as session:
            row = lock(self._database, session, self._name)
            if row.holder == self._holder:
                row.until = 0.0
