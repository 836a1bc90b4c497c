"""Pages of a list: what is behind a cursor, so that a client that turns them comes to an end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session
from starlette.requests import Request

from ftray.serve.openai.errors import INVALID, ApiError


@dataclass(frozen=True)
class Query:
    """Which page is asked for."""

    after: str | None
    limit: int
    is_ascending: bool = False


Row = TypeVar("Row")


@dataclass(frozen=True)
class Page(Generic[Row]):
    """Some rows, and whether there are more."""

    rows: Sequence[Row]
    has_more: bool


def read_query(request: Request, *, limit: int, most: int) -> Query:
    """Read `after`, `limit` and `order`; raises ApiError."""
    given = request.query_params
    text = given.get("limit", str(limit))
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= most):
        raise ApiError(INVALID, f"limit is a number from 1 to {most}", "limit")
    order = given.get("order", "desc")
    if order not in ("asc", "desc"):
        raise ApiError(INVALID, "order is asc or desc", "order")
    after = given.get("after") or None
    if after is not None and (len(after) > 100 or not after.isprintable()):
        raise no_cursor(after)
    return Query(after, int(text), order == "asc")


def no_cursor(after: str) -> ApiError:
    """Return the answer for an unknown cursor; the first page again would be read for ever."""
    return ApiError(INVALID, f"after: there is no '{after[:100]}' in this list", "after")


def turn(
    session: Session, table: Any, project: str, query: Query, chosen: sa.ColumnElement[bool]
) -> Page[Any]:
    """Return a page of a table with `id`, `created` and `project`.

    A row that was deleted still is a cursor.
    """
    rows = sa.select(table).where(table.project == project, chosen)
    if query.after is not None:
        found = session.get(table, query.after)
        if found is None or found.project != project:
            raise no_cursor(query.after)
        place = sa.tuple_(table.created, table.id)
        here = sa.tuple_(sa.literal(found.created, sa.Double), sa.literal(found.id))
        rows = rows.where(place > here if query.is_ascending else place < here)
    order = (table.created, table.id)
    by = order if query.is_ascending else tuple(column.desc() for column in order)
    return cut(session.scalars(rows.order_by(*by).limit(query.limit + 1)).all(), query)


def cut(rows: Sequence[Row], query: Query) -> Page[Row]:
    """Make a page of rows of which one more than it holds was asked for."""
    return Page(rows[: query.limit], len(rows) > query.limit)
