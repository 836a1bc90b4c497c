import asyncio
import logging
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from ftray.accounts import keyring
from ftray.accounts.access import Caller, KeyAccess
from ftray.accounts.database import Database, open_database
from ftray.accounts.grant import Grant
from ftray.accounts.keys import create_key, list_keys, revoke_key
from ftray.accounts.ledger import list_usage
from ftray.accounts.tables import TakingRow
from ftray.errors import ConfigError, StorageError

NOON = 1_700_000_000.0 // 86400 * 86400 + 43200  # of 2023-11-14, at the beginning of a minute
FAST = 0.02


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def access(database: Database, clock: Clock) -> Iterator[KeyAccess]:
    yield from started(database, clock)


@pytest.fixture
def other(database: Database, clock: Clock) -> Iterator[KeyAccess]:
    """Another serving process on the same database."""
    yield from started(database, clock)


def started(database: Database, clock: Clock) -> Iterator[KeyAccess]:
    opened = KeyAccess(database, clock=clock, every=FAST)
    opened.start()
    yield opened
    opened.close()


def asked(access: KeyAccess, secret: str | None) -> Caller | None:
    return asyncio.run(access.authenticate(secret))


def until(happened: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_key_opens_what_it_was_made_for_at_once(database: Database, access: KeyAccess):
    grant = Grant(name="bot", project="shop", scopes=("serve", "train"), models=("bot",))
    key, secret = create_key(database, grant)
    scopes, models = frozenset({"serve", "train"}), frozenset({"bot"})
    assert asked(access, secret) == Caller(key.id, "shop", scopes, models)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda secret: None,
        lambda secret: "",
        lambda secret: secret[:-1],
        lambda secret: secret + "a",
        lambda secret: secret + "\n",
        lambda secret: secret.upper(),
        lambda secret: secret[:-1] + ("a" if secret[-1] != "a" else "b"),
        lambda secret: secret[:-1] + "é",
        lambda secret: secret.replace("ft-", "ſt-"),
        lambda secret: "ft-" + "a" * 12 + secret[15:],
        lambda secret: "\udcff" * 56,
        lambda secret: "a" * 10**6,
        lambda secret: "' or 1=1 --",
    ],
)
def test_what_is_not_exactly_a_secret_is_nobodys(
    file_database: Database, spoil: Callable[[str], str | None]
):
    _, secret = create_key(file_database, Grant(name="bot"))
    access = KeyAccess(file_database, every=FAST)
    access.start()
    assert asked(access, secret) is not None
    assert asked(access, spoil(secret)) is None
    access.close()


def test_a_revoked_key_opens_nothing_within_moments(database: Database, access: KeyAccess):
    key, secret = create_key(database, Grant(name="bot"))
    assert asked(access, secret) is not None
    revoke_key(database, key.id)
    until(lambda: asked(access, secret) is None, 4 * FAST + 5)


def test_an_expired_key_opens_nothing(file_database: Database, clock: Clock):
    clock.now = time.time()
    _, secret = create_key(file_database, Grant(name="bot", expires=clock.now + 60))
    for access in started(file_database, clock):
        assert asked(access, secret) is not None
        clock.now += 60
        assert asked(access, secret) is None


def test_a_server_is_open_only_until_a_first_key_was_made(file_database: Database):
    access = KeyAccess(file_database, open_until_first_key=True, every=FAST)
    access.start()
    assert asked(access, None) == asked(access, "anything") == Caller()
    assert access.admit("", 10**9).refusal == ""
    access.used("", "base", 10**9, 5, 5)
    key, secret = create_key(file_database, Grant(name="bot"))
    until(lambda: asked(access, None) is None)
    revoke_key(file_database, key.id)
    until(lambda: asked(access, secret) is None)
    assert asked(access, None) is None  # it does not open again
    access.close()
    assert list_usage(file_database) == []


def test_guessed_ids_do_not_keep_the_database_busy(file_database: Database):
    create_key(file_database, Grant(name="bot"))
    statements: list[str] = []
    access = KeyAccess(file_database, every=60.0)
    access.start()
    sa.event.listen(
        file_database.engine, "before_cursor_execute", lambda *given: statements.append(given[2])
    )

    async def guess() -> None:
        guesses = [f"ft-{n:012d}-{'a' * 40}" for n in range(500)]
        assert set(await asyncio.gather(*map(access.authenticate, guesses))) == {None}

    asyncio.run(guess())
    assert len([text for text in statements if text.startswith("SELECT")]) == 1
    access.close()


def test_requests_are_refused_over_the_limit_and_told_when_to_come_back(
    database: Database, access: KeyAccess, clock: Clock
):
    key, _ = create_key(database, Grant(name="bot", requests_per_minute=2))
    until(lambda: access.admit(key.id, 0).requests is not None)
    second = access.admit(key.id, 10)
    third = access.admit(key.id, 10)
    assert second.requests is not None
    assert (second.refusal, second.requests.limit, second.requests.remaining) == ("", 2, 0)
    assert second.tokens is None
    assert "2 requests a minute is reached: try again in 90.0 s" in third.refusal
    assert third.wait == pytest.approx(90)
    clock.now += 89
    assert access.admit(key.id, 10).refusal
    clock.now += 1
    assert access.admit(key.id, 10).refusal == ""


def test_tokens_are_reserved_and_given_back(database: Database, access: KeyAccess, clock: Clock):
    key, secret = create_key(database, Grant(name="bot", tokens_per_minute=100))
    assert asked(access, secret) is not None
    assert access.admit(key.id, 60).tokens.remaining == 40
    assert "100 tokens a minute" in access.admit(key.id, 60).refusal
    access.used(key.id, "bot@1", 60, 10, 5)
    assert access.admit(key.id, 60).tokens.remaining == 25
    access.used(key.id, "", 60, 0, 0)
    assert access.admit(key.id, 85).tokens.remaining == 0


def test_what_is_given_back_late_is_given_back_in_its_own_minute(
    file_database: Database, clock: Clock
):
    key, secret = create_key(file_database, Grant(name="bot", tokens_per_minute=100))
    for access in started(file_database, clock):
        assert asked(access, secret) is not None
        access.admit(key.id, 100)
        clock.now += 60 + 30  # half of it has come back
        assert access.admit(key.id, 40).tokens.remaining == 10
        access.used(key.id, "bot@1", 100, 0, 0)
        assert access.admit(key.id, 0).tokens.remaining == 60
        clock.now += 180
        access.used(key.id, "bot@1", 40, 0, 0)
        assert access.admit(key.id, 0).tokens.remaining == 100


def test_what_was_taken_beyond_the_reservation_counts_when_it_is_known(
    file_database: Database, clock: Clock
):
    key, secret = create_key(file_database, Grant(name="bot", tokens_per_minute=100))
    for access in started(file_database, clock):
        assert asked(access, secret) is not None
        access.admit(key.id, 10)
        clock.now += 600
        access.used(key.id, "bot@1", 10, 5, 35)
        assert access.admit(key.id, 0).tokens.remaining == 70


def test_a_request_larger_than_the_limit_can_never_be_admitted(
    database: Database, access: KeyAccess
):
    key, secret = create_key(database, Grant(name="bot", tokens_per_minute=100))
    assert asked(access, secret) is not None
    refused = access.admit(key.id, 101)
    assert refused.wait is None
    assert "may take 101 tokens, and the limit of its key is 100" in refused.refusal
    assert access.admit(key.id, 100).refusal == ""


def test_processes_share_one_limit(
    database: Database, access: KeyAccess, other: KeyAccess, clock: Clock
):
    key, secret = create_key(database, Grant(name="bot", tokens_per_minute=100))
    assert asked(access, secret) is not None
    assert asked(other, secret) is not None
    access.admit(key.id, 60)
    until(lambda: other.admit(key.id, 0).tokens.remaining == 40)
    other.admit(key.id, 40)
    until(lambda: access.admit(key.id, 0).tokens.remaining == 0)
    access.used(key.id, "bot@1", 60, 10, 10)
    until(lambda: other.admit(key.id, 0).tokens.remaining == 40)


def test_minutes_that_are_over_are_forgotten(database: Database, access: KeyAccess, clock: Clock):
    key, secret = create_key(database, Grant(name="bot", requests_per_minute=5))
    assert asked(access, secret) is not None

    def minutes() -> int:
        with database.reading() as session:
            return len(session.scalars(sa.select(TakingRow)).all())

    for count in (1, 2):
        access.admit(key.id, 1)
        until(lambda: minutes() == count)  # noqa: B023 called before the next round
        clock.now += 60
    clock.now += 3600
    access.admit(key.id, 1)
    until(lambda: minutes() == 1)


def test_the_ledger_sums_by_key_model_and_day(
    database: Database, access: KeyAccess, other: KeyAccess, clock: Clock
):
    keys = [create_key(database, Grant(name=name)) for name in "ab"]
    for key, secret in keys:
        assert asked(access, secret) is not None
        for server in (access, other):
            for model in ("bot@1", "bot@2", "bot@2"):
                server.admit(key.id, 100)
                server.used(key.id, model, 100, 10, 3)
    clock.now = time.time()
    access.used(keys[0][0].id, "bot@1", 0, 1, 1)
    access.close()
    other.close()
    a, b = (key.id for key, _ in keys)
    found = {(u.key, u.model): u for u in list_usage(database)}
    assert {name: (u.requests, u.prompt_tokens, u.answer_tokens) for name, u in found.items()} == {
        (a, "bot@1"): (3, 21, 7),
        (a, "bot@2"): (4, 40, 12),
        (b, "bot@1"): (2, 20, 6),
        (b, "bot@2"): (4, 40, 12),
    }
    first = found[a, "bot@1"]
    assert (first.name, first.first) == ("a", date(2023, 11, 14))
    [today] = list_usage(database, days=1)
    assert (today.first, today.last) == (first.last, first.last)
    assert (today.key, today.requests) == (a, 1)
    assert len(list_usage(database, key=a, daily=True)) == 3
    assert len(list_usage(database, days=10**12)) == 4
    with pytest.raises(ConfigError, match="no key 'nobody'"):
        list_usage(database, key="nobody")


def test_a_key_shows_when_it_was_last_used(database: Database, access: KeyAccess, clock: Clock):
    _, secret = create_key(database, Grant(name="bot"))
    asked(access, secret)
    until(lambda: list_keys(database)[0].last_used == clock.now)


def test_nothing_is_lost_while_the_database_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "accounts.db"
    database = open_database(f"sqlite:///{path}", patience=0.01)
    key, secret = create_key(database, Grant(name="bot", tokens_per_minute=1000))
    access = KeyAccess(database, every=FAST)
    access.start()
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with caplog.at_level(logging.INFO, "ftray"):
            for _ in range(20):
                assert asked(access, secret) is not None
                assert access.admit(key.id, 10).refusal == ""
                access.used(key.id, "bot@1", 10, 2, 1)
                time.sleep(FAST / 4)
            until(lambda: "counting goes on" in caplog.text)
            holder.execute("COMMIT")
            until(lambda: "is back" in caplog.text)
    until(lambda: access.admit(key.id, 0).tokens.remaining == 940)
    access.close()
    assert caplog.text.count("counting goes on") == 1
    [usage] = list_usage(database)
    assert (usage.requests, usage.prompt_tokens, usage.answer_tokens) == (20, 40, 20)
    database.close()


def test_keys_are_not_trusted_for_ever_without_the_database(
    file_database: Database, monkeypatch: pytest.MonkeyPatch
):
    _, secret = create_key(file_database, Grant(name="bot"))
    access = KeyAccess(file_database, every=60)
    access.start()
    monkeypatch.setattr(keyring, "_TRUST", 0.0)
    with pytest.raises(StorageError, match="which keys are valid is not known"):
        asked(access, secret)
    access.close()


SERVE_THEN_HANG = """
import asyncio, sys, time
from ftray.accounts.access import KeyAccess
from ftray.accounts.database import open_database
access = KeyAccess(open_database(sys.argv[1]), every=0.3)
access.start()
key = asyncio.run(access.authenticate(sys.argv[2])).key
for _ in range(100):
    access.admit(key, 10)
    access.used(key, "bot@1", 10, 2, 1)
print("used", flush=True)
if sys.argv[3] == "hang":
    time.sleep(0.6)
    access.used(key, "bot@2", 10, 2, 1)
    print("more", flush=True)
    time.sleep(60)
"""


def test_a_kill_loses_at_most_what_came_since_the_last_exchange(database: Database, ready_url: str):
    _, secret = create_key(database, Grant(name="bot"))
    process = _serving(ready_url, secret, "hang")
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["used\n", "more\n"]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    found = {usage.model: usage.requests for usage in list_usage(database)}
    assert found["bot@1"] == 100


def test_a_process_that_ends_without_closing_loses_nothing(database: Database, ready_url: str):
    _, secret = create_key(database, Grant(name="bot"))
    process = _serving(ready_url, secret, "end")
    assert process.communicate(timeout=30)[0] == "used\n"
    [usage] = list_usage(database)
    assert (usage.requests, usage.prompt_tokens, usage.answer_tokens) == (100, 200, 100)
    assert usage.last == datetime.now(UTC).date()


def _serving(url: str, secret: str, end: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", SERVE_THEN_HANG, url, secret, end]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
