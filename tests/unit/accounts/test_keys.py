import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from ftray.accounts.database import Database
from ftray.accounts.grant import Grant
from ftray.accounts.keys import create_key, list_keys, note_used, revoke_key
from ftray.accounts.secret import new_secret, parse_secret
from ftray.accounts.tables import KeyRow
from ftray.errors import ConfigError


def test_a_secret_is_long_random_and_names_its_key(database: Database):
    key, secret = create_key(database, Grant(name="bot"))
    assert secret.startswith(f"ft-{key.id}-")
    assert len(secret.removeprefix(f"ft-{key.id}-")) * 5.95 > 160  # bits, of 62 characters each
    assert len({new_secret().text for _ in range(100)}) == 100


def test_the_database_holds_no_secret_but_its_digest(database: Database):
    _, secret = create_key(database, Grant(name="bot"))
    with database.reading() as session:
        row = session.execute(sa.select(KeyRow.__table__)).one()
    assert secret.rpartition("-")[2] not in str(row)
    found = parse_secret(secret)
    assert found is not None
    assert found.matches(row.digest)


def test_a_secret_does_not_show_itself_in_a_log():
    secret = new_secret()
    assert secret.text not in repr(secret)


def test_a_key_is_listed_with_all_that_it_may_do(database: Database):
    grant = Grant(
        name="Grüße ✓",
        project="shop",
        scopes=("serve", "train"),
        models=("bot", "base"),
        requests_per_minute=60,
        tokens_per_minute=10**10,
        expires=time.time() + 60,
    )
    key, _ = create_key(database, grant)
    create_key(database, Grant(name="second"))
    first, second = list_keys(database)
    assert first == key
    assert first.state == "active"
    assert (first.name, first.models, first.tokens_per_minute) == (
        "Grüße ✓",
        ("bot", "base"),
        10**10,
    )
    assert (second.project, second.scopes, second.models) == ("default", ("serve",), None)


def test_many_may_create_keys_at_once(database: Database):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: create_key(database, Grant(name=f"k{n}")), range(40)))
    assert {key.id for key, _ in made} == {key.id for key in list_keys(database)}
    assert len({secret for _, secret in made}) == 40


def test_revoking_is_for_ever_and_keeps_its_first_time(database: Database):
    key, _ = create_key(database, Grant(name="bot"))
    first = revoke_key(database, key.id)
    assert first.state == "revoked"
    assert revoke_key(database, key.id) == first == list_keys(database)[0]


def test_revoking_an_unknown_key_names_a_near_one(database: Database):
    key, _ = create_key(database, Grant(name="bot"))
    with pytest.raises(ConfigError, match=f"did you mean '{key.id}'"):
        revoke_key(database, key.id[:-1])
    with pytest.raises(ConfigError, match="no key 'bot'\n  hint: ftray keys list"):
        revoke_key(database, "bot")


def test_a_clock_that_is_behind_sets_no_last_use_back(database: Database):
    key, _ = create_key(database, Grant(name="bot"))
    for moment in (100.0, 300.0, 200.0):
        with database.writing() as session:
            note_used(session, {key.id: moment, "unknown": 1.0})
    assert list_keys(database)[0].last_used == 300.0


@pytest.mark.parametrize(
    ("grant", "said"),
    [
        (Grant(name=""), "name has 1 to 100 printable characters"),
        (Grant(name="a\nb"), "name has 1 to 100 printable characters"),
        (Grant(name="x" * 101), "name has 1 to 100 printable characters"),
        (Grant(name="a\udcff"), "name has 1 to 100 printable characters"),
        (Grant(name="a", project="p\0"), "a project's name has 1 to 100 printable characters"),
        (Grant(name="a", scopes=("srve",)), "did you mean 'serve'"),
        (Grant(name="a", scopes=()), "may do nothing"),
        (Grant(name="a", models=()), "may do nothing"),
        (Grant(name="a", models=("../x",)), "adapter '../x' is not possible"),
        (Grant(name="a", models=("bot@3",)), "a name without its version"),
        (Grant(name="a", requests_per_minute=0), "a limit is a number from 1"),
        (Grant(name="a", tokens_per_minute=10**30), "a limit is a number from 1"),
        (Grant(name="a", expires=1.0), "already expired"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(file_database: Database, grant: Grant, said: str):
    with pytest.raises(ConfigError, match=said):
        create_key(file_database, grant)
    assert list_keys(file_database) == []
