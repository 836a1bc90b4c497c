"""The database of accounts and jobs: SQLite beside the storage root, or PostgreSQL by URL.

Its tables are the subclasses of `Base`, wherever they are declared; `migrations` makes them.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from ftray.accounts.border import Border
from ftray.accounts.url import checked_url, shown
from ftray.errors import StorageError


class Base(DeclarativeBase):
    """What all tables of the database have in common: one metadata, and names for constraints."""

    metadata = sa.MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )


@dataclass(frozen=True)
class Database:
    """An open database; threads may share it. Its errors come out as StorageError."""

    engine: sa.Engine

    def __str__(self) -> str:
        return shown(self.engine.url)

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that may write: it ends well as a whole, or leaves nothing behind."""
        with Border(str(self)), _sessions(self.engine).begin() as session:
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that only reads: on SQLite it waits for no writer, and holds none up."""
        engine = self.engine.execution_options(**{_READS: True})
        with Border(str(self)), _sessions(engine).begin() as session:
            yield session

    def insert(self, table: type[Base]) -> "sqlite.Insert | postgresql.Insert":
        """An INSERT that can say what to do where the row exists: each dialect has its own."""
        is_sqlite = self.engine.dialect.name == "sqlite"
        return sqlite.insert(table) if is_sqlite else postgresql.insert(table)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def open_database(url: str, *, patience: float = 10.0) -> Database:
    """Open the database and bring its tables up to date; several processes may do so at once.

    `patience`: seconds to wait for another process's lock, and for a server to answer.
    """
    checked = checked_url(url)
    with Border(shown(checked)):
        database = Database(_new_engine(checked, patience))
        try:
            _migrate(database.engine)
        except BaseException:
            database.close()
            raise
    return database


def _sessions(engine: sa.Engine) -> sessionmaker[Session]:
    return sessionmaker(engine, expire_on_commit=False)


_READS = "ftray_reads"
_MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 0x667472617930  # "ftray0": any number that other users of the server don't take
_alembic = threading.Lock()  # its `op` and `context` belong to the process


def _new_engine(url: sa.URL, patience: float) -> sa.Engine:
    if url.get_backend_name() == "postgresql":
        given = {"connect_timeout": max(2, round(patience))}
        # a server may be restarted, or hang up on who is silent: each connection is tried first
        return sa.create_engine(url, connect_args=given, pool_pre_ping=True)
    if url.database is not None:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": patience})
    event.listen(engine, "connect", lambda made, _: _prepare_sqlite(made, patience))
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: DBAPIConnection, patience: float) -> None:
    connection.isolation_level = None  # else Python decides where a transaction begins
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    # `synchronous` stays FULL: a key that was revoked must not come back after a power cut
    deadline = time.monotonic() + patience
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:  # SQLite waits for no lock to change the mode
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A deferred transaction that turns to writing fails at once if another process has written.
    reads = _READS in connection.get_execution_options()
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _migrate(engine: sa.Engine) -> None:
    script = ScriptDirectory(str(_MIGRATIONS))
    with engine.execution_options(**{_READS: True}).begin() as connection:
        if _is_newest(connection, script):
            return
    with _alembic, engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        if _is_newest(connection, script):  # another process was faster
            return
        config = Config(attributes={"connection": connection, "metadata": Base.metadata})
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        command.upgrade(config, "head")


def _is_newest(connection: sa.Connection, script: ScriptDirectory) -> bool:
    found = MigrationContext.configure(connection).get_current_revision()
    known = [revision.revision for revision in script.walk_revisions()]
    if found is not None and found not in known:
        newer = f"written by a newer ftray (revision {found}, known: {known[0]})"
        raise StorageError(
            f"database {shown(connection.engine.url)}: {newer}", "pip install -U ftray"
        )
    return found == known[0]
