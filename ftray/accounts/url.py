"""Where the database is: a setting, the environment, or a file in the storage root."""

import logging
import os
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from ftray.errors import ConfigError
from ftray.storage import is_uri

logger = logging.getLogger(__name__)


def database_url(root: str, configured: str | None = None) -> str:
    """Return the configured URL, else `$FTRAY_DATABASE`, else that of a file in the storage root.

    A root behind a URI cannot hold a SQLite file: it is then in the user's own `~/.ftray` (or
    $FTRAY_HOME). Several machines need PostgreSQL.
    """
    if given := configured or os.environ.get("FTRAY_DATABASE"):
        return given
    folder = _local_home() if is_uri(root) else Path(root)
    if is_uri(root):
        logger.info("accounts in %s: %s cannot hold a database (FTRAY_DATABASE)", folder, root)
    return URL.create("sqlite", database=str(folder / "accounts.db")).render_as_string()


def checked_url(url: str) -> URL:
    """Parse a URL for one of the two databases; ConfigError, without its password, for others."""
    example = "as in postgresql://user:password@host/database or sqlite:////folder/accounts.db"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigError("the database's URL cannot be read", example) from None
    match parsed.get_backend_name():
        case "sqlite" if parsed.database not in (None, "", ":memory:"):
            return parsed.set(drivername="sqlite+pysqlite")
        case "postgresql" | "postgres":
            return parsed.set(drivername=_with_psycopg())
        case _:
            found = shown(parsed) or "SQLite in memory"
            raise ConfigError(f"needed is SQLite in a file or PostgreSQL, not {found}", example)


def shown(url: URL) -> str:
    """Return a SQLite file's path, or a server's URL without its password."""
    backend = url.get_backend_name()
    if backend == "sqlite":
        return url.database or ""
    return url.set(drivername=backend).render_as_string(hide_password=True)


def _with_psycopg() -> str:
    if find_spec("psycopg") is None:
        raise ConfigError("PostgreSQL needs psycopg", "pip install 'ftray[postgres]'")
    return "postgresql+psycopg"


def _local_home() -> Path:
    home = os.environ.get("FTRAY_HOME", "")
    return Path(home if home and not is_uri(home) else "~/.ftray").expanduser().absolute()
