"""API keys: create, list, revoke. A key's secret is shown once and kept nowhere."""

import time
from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ftray.accounts.audit import Actor, note
from ftray.accounts.database import Database
from ftray.accounts.grant import Grant, Key, check_grant
from ftray.accounts.secret import new_secret
from ftray.accounts.tables import KeyRow
from ftray.errors import ConfigError, did_you_mean


def create_key(database: Database, grant: Grant) -> tuple[Key, str]:
    """Make a key; return it and its secret, which cannot be had again."""
    check_grant(grant)
    secret = new_secret()
    row = KeyRow(
        id=secret.id,
        digest=secret.digest,
        name=grant.name,
        project=grant.project,
        scopes=list(dict.fromkeys(grant.scopes)),
        models=None if grant.models is None else list(dict.fromkeys(grant.models)),
        requests_per_minute=grant.requests_per_minute,
        tokens_per_minute=grant.tokens_per_minute,
        created=time.time(),
        expires=grant.expires,
    )
    with database.writing() as session:
        session.add(row)
        note(session, Actor(grant.project), "key.create", secret.id)
    return key_of(row), secret.text


def list_keys(database: Database) -> list[Key]:
    """Return all keys that ever were, the oldest first."""
    with database.reading() as session:
        return [key_of(row) for row in session.scalars(sa.select(KeyRow).order_by(KeyRow.created))]


def revoke_key(database: Database, id: str) -> Key:
    """Let a key open nothing any more; running servers know of it within seconds."""
    with database.writing() as session:
        row = find_key(session, id)
        row.revoked = row.revoked or time.time()
        note(session, Actor(row.project), "key.revoke", id)
        return key_of(row)


def find_key(session: Session, id: str) -> KeyRow:
    """Return a key's row; ConfigError if there is none."""
    row = session.get(KeyRow, id)
    if row is None:
        known = session.scalars(sa.select(KeyRow.id)).all()
        raise ConfigError(f"no key '{id}'", did_you_mean(id, known, "ftray keys list"))
    return row


def note_used(session: Session, seen: Mapping[str, float]) -> None:
    """Write when keys were used; a process whose clock is behind sets nothing back."""
    moment = sa.bindparam("moment", type_=sa.Double)
    is_older = sa.or_(KeyRow.last_used.is_(None), KeyRow.last_used < moment)
    update = sa.update(KeyRow).where(KeyRow.id == sa.bindparam("key"), is_older)
    rows = [{"key": key, "moment": at} for key, at in sorted(seen.items())]
    if rows:
        session.connection().execute(update.values(last_used=moment), rows)


def key_of(row: KeyRow) -> Key:
    """Return a row as a key."""
    return Key(
        id=row.id,
        name=row.name,
        project=row.project,
        scopes=tuple(row.scopes),
        models=None if row.models is None else tuple(row.models),
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        created=row.created,
        expires=row.expires,
        revoked=row.revoked,
        last_used=row.last_used,
    )
