"""API keys and usage, as Python functions."""

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ftray.accounts.database import Database
    from ftray.accounts.grant import Grant, Key
    from ftray.accounts.ledger import Usage


@dataclass(frozen=True)
class NewKey:
    """A key that was just made, with the secret that is shown this once."""

    key: "Key"
    secret: str
    database: str


def create_key(grant: "Grant", *, storage: str | None = None) -> NewKey:
    """Make an API key; its secret cannot be had again."""
    from ftray.accounts import keys

    with accounts(storage) as database:
        key, secret = keys.create_key(database, grant)
        return NewKey(key, secret, str(database))


def list_keys(*, storage: str | None = None) -> "list[Key]":
    """Return all API keys that ever were, the oldest first, without their secrets."""
    from ftray.accounts import keys

    with accounts(storage) as database:
        return keys.list_keys(database)


def revoke_key(id: str, *, storage: str | None = None) -> "Key":
    """Let an API key open nothing any more; running servers know of it within seconds."""
    from ftray.accounts import keys

    with accounts(storage) as database:
        return keys.revoke_key(database, id)


def list_usage(
    *,
    key: str | None = None,
    days: int | None = None,
    daily: bool = False,
    storage: str | None = None,
) -> "list[Usage]":
    """Sum up what was used, by key and model, in the last `days` (UTC, with today; None: ever)."""
    from ftray.accounts import ledger

    with accounts(storage) as database:
        return ledger.list_usage(database, key=key, days=days, daily=daily)


def accounts(storage: str | None) -> "closing[Database]":
    """Open the database of a storage root for a block's time."""
    from ftray.accounts.database import open_database
    from ftray.accounts.url import database_url
    from ftray.storage import storage_root

    return closing(open_database(database_url(storage_root(storage))))
