"""The ledger: what each key used of each model version, by day."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ftray.accounts.database import Database
from ftray.accounts.keys import find_key
from ftray.accounts.tables import KeyRow, UsageRow
from ftray.accounts.tally import Count


class Entry(NamedTuple):
    """What a line of the ledger is about."""

    key: str
    model: str  # a version, as in bot@3, or the base model's name
    day: date  # UTC


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What was used in some days."""

    key: str
    name: str  # the key's
    project: str
    model: str
    first: date
    last: date
    requests: int
    prompt_tokens: int
    answer_tokens: int


def enter(session: Session, database: Database, counts: Mapping[Entry, Count]) -> None:
    """Add to the lines of the ledger, or begin them."""
    new = database.insert(UsageRow)
    sums = {
        column.name: column + new.excluded[column.name]
        for column in (UsageRow.requests, UsageRow.prompt_tokens, UsageRow.answer_tokens)
    }
    add = new.on_conflict_do_update(index_elements=["key", "model", "day"], set_=sums)
    rows = [
        {
            **entry._asdict(),
            "requests": count.requests,
            "prompt_tokens": count.prompt,
            "answer_tokens": count.answer,
        }
        for entry, count in sorted(counts.items())  # one order in all processes: no deadlock
    ]
    if rows:
        session.connection().execute(add, rows)


def list_usage(
    database: Database, *, key: str | None = None, days: int | None = None, daily: bool = False
) -> list[Usage]:
    """Sum up the ledger by key and model, and by day if wanted; of the last days, with today.

    Raises ConfigError for an unknown key.
    """
    names = [KeyRow.name, KeyRow.project]
    groups = [UsageRow.key, UsageRow.model, *([UsageRow.day] if daily else [])]
    sums = [UsageRow.requests, UsageRow.prompt_tokens, UsageRow.answer_tokens]
    query = (
        sa.select(
            UsageRow.key,
            UsageRow.model,
            *(sa.func.coalesce(sa.func.max(column), "").label(column.name) for column in names),
            sa.func.min(UsageRow.day).label("first"),
            sa.func.max(UsageRow.day).label("last"),
            # a sum of integers is a decimal in PostgreSQL
            *(sa.cast(sa.func.sum(column), sa.BigInteger).label(column.name) for column in sums),
        )
        .outerjoin(KeyRow, KeyRow.id == UsageRow.key)
        .group_by(*groups)
        .order_by(*([sa.desc(UsageRow.day)] if daily else []), UsageRow.key, UsageRow.model)
    )
    if days is not None:
        first = datetime.now(UTC).date() - timedelta(min(days, _EVER) - 1)
        query = query.where(UsageRow.day >= first)
    with database.reading() as session:
        if key is not None:
            query = query.where(UsageRow.key == find_key(session, key).id)
        return [Usage(**row) for row in session.execute(query).mappings()]


_EVER = 100_000  # days; a calendar ends somewhere
