import logging
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from ftray.accounts.database import Base, Database, open_database
from ftray.accounts.grant import Grant
from ftray.accounts.keys import create_key, list_keys
from ftray.accounts.tables import KeyRow
from ftray.accounts.url import database_url
from ftray.errors import ConfigError, StorageError
from ftray.service.tables import JobRow

OPEN_AND_CREATE = """
import sys
from ftray.accounts.database import open_database
from ftray.accounts.grant import Grant
from ftray.accounts.keys import create_key
print("ready", flush=True)
sys.stdin.readline()
database = open_database(sys.argv[1])
create_key(database, Grant(name=sys.argv[2]))
database.close()
"""


def test_processes_that_start_at_once_make_the_tables_once(url: str):
    processes = [_start(url, str(number)) for number in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    told = [process.communicate("go\n", timeout=30) for process in processes]
    assert [process.returncode for process in processes] == [0] * 2, told
    database = open_database(url)
    assert {key.name for key in list_keys(database)} == {"0", "1"}
    database.close()


def test_threads_that_open_it_at_once_make_the_tables_once(url: str):
    opened: list[Database] = []
    threads = [threading.Thread(target=lambda: opened.append(open_database(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [list_keys(database) for database in opened] == [[]] * 4
    for database in opened:
        database.close()


def test_a_new_file_is_opened_while_another_connection_holds_it(tmp_path: Path):
    """SQLite itself waits for no lock where it changes the mode of a new file."""
    file = tmp_path / "accounts.db"
    holder = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    holder.execute("CREATE TABLE held (n)")
    timer = threading.Timer(0.3, lambda: holder.execute("COMMIT"))
    timer.start()
    open_database(f"sqlite:///{file}").close()
    timer.join()
    holder.close()


def test_the_migrations_make_the_tables_that_the_code_declares(database: Database):
    assert {KeyRow.__tablename__, JobRow.__tablename__} <= set(Base.metadata.tables)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_a_transaction_that_fails_leaves_nothing(database: Database):
    key, _ = create_key(database, Grant(name="kept"))
    with pytest.raises(RuntimeError, match="half way"):
        _rename_and_fail(database)
    assert list_keys(database) == [key]


def test_a_reader_does_not_wait_for_a_writer(database: Database):
    with database.writing() as session:
        session.execute(sa.update(KeyRow).values(name="x"))
        assert list_keys(database) == []


def test_a_database_of_a_newer_ftray_is_left_alone(url: str):
    database = open_database(url)
    with database.writing() as session:
        session.execute(sa.text("update alembic_version set version_num = '9999'"))
    database.close()
    with pytest.raises(StorageError, match=r"newer ftray \(revision 9999"):
        open_database(url)


def test_the_folder_of_the_file_is_made(tmp_path: Path):
    open_database(f"sqlite:///{tmp_path}/new/folder/accounts.db").close()
    assert (tmp_path / "new" / "folder" / "accounts.db").exists()


def test_a_file_that_is_no_database_is_named(tmp_path: Path):
    path = tmp_path / "accounts.db"
    path.write_bytes(b"this is not a database " * 100)
    with pytest.raises(
        StorageError, match=r"accounts\.db: file is not a database\n.*move the file"
    ):
        open_database(f"sqlite:///{path}")


def test_a_damaged_file_is_named_when_it_is_read(tmp_path: Path):
    path = tmp_path / "accounts.db"
    database = open_database(f"sqlite:///{path}")
    for _ in range(50):
        create_key(database, Grant(name="a" * 100))
    database.close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(StorageError, match=r"accounts\.db: .*malformed") as raised:
        list_keys(open_database(f"sqlite:///{path}"))
    assert "move the file away" in raised.value.hint


def test_a_file_that_somebody_holds_is_waited_for_and_then_named(tmp_path: Path):
    path = tmp_path / "accounts.db"
    database = open_database(f"sqlite:///{path}", patience=0.1)
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="database is locked") as raised:
            create_key(database, Grant(name="a"))
        assert "another process" in raised.value.hint
        assert list_keys(database) == []  # reading goes on
        holder.execute("COMMIT")
    create_key(database, Grant(name="a"))
    database.close()


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path):
    with pytest.raises(StorageError, match="unable to open database file"):
        open_database(f"sqlite:///{tmp_path}")


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path):
    (tmp_path / "root").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match=r"root/accounts\.db: (File exists|Not a directory)"):
        open_database(f"sqlite:///{tmp_path}/root/accounts.db")


def test_a_server_that_is_not_there_is_named_without_its_password(tmp_path: Path):
    with pytest.raises(StorageError, match=r"database postgresql://me:\*\*\*@/accounts") as raised:
        open_database(f"postgresql://me:hidden@/accounts?host={tmp_path}", patience=0.1)
    assert "hidden" not in str(raised.value)


def test_a_database_that_was_not_created_is_named(postgres: str):
    url = sa.make_url(postgres).set(database="nowhere").render_as_string(hide_password=False)
    with pytest.raises(StorageError, match='database "nowhere" does not exist') as raised:
        open_database(url)
    assert "createdb" in raised.value.hint


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("accounts.db", "URL cannot be read"),
        ("", "URL cannot be read"),
        ("postgresql://me:hidden@host:port/x", "URL cannot be read"),
        ("mysql://me:hidden@host/x", "SQLite in a file or PostgreSQL"),
        ("sqlite://", "SQLite in a file or PostgreSQL"),
        ("sqlite:///:memory:", "SQLite in a file or PostgreSQL"),
    ],
)
def test_a_url_of_something_else_is_refused_without_its_password(url: str, said: str):
    with pytest.raises(ConfigError, match=said) as raised:
        open_database(url)
    assert "hidden" not in str(raised.value)


def test_the_database_is_where_the_setting_the_environment_or_the_root_says(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.delenv("FTRAY_DATABASE", raising=False)
    monkeypatch.setenv("FTRAY_HOME", "/some/home")
    assert database_url("/some/where") == "sqlite:////some/where/accounts.db"
    with caplog.at_level(logging.INFO, "ftray"):
        assert database_url("s3://bucket/ftray") == "sqlite:////some/home/accounts.db"
    assert "s3://bucket/ftray cannot hold a database" in caplog.text
    monkeypatch.setenv("FTRAY_DATABASE", "postgresql://host/db")
    assert database_url("/some/where") == "postgresql://host/db"
    assert database_url("/some/where", "sqlite:////x") == "sqlite:////x"


def _rename_and_fail(database: Database) -> None:
    with database.writing() as session:
        session.execute(sa.update(KeyRow).values(name="lost"))
        raise RuntimeError("half way")


def _start(url: str, name: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", OPEN_AND_CREATE, url, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
