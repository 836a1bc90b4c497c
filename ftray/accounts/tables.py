"""The tables of accounts, as they are today; `migrations` says how they came to be."""

from datetime import date

from sqlalchemy import JSON, BigInteger, Double, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from ftray.accounts.database import Base

# SQLite counts up by itself only what it calls INTEGER
Counter = BigInteger().with_variant(Integer, "sqlite")


class KeyRow(Base):
    """An API key; it is never deleted, so that what was used with it keeps its name."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(12), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))  # SHA-256 of the secret, in hex
    name: Mapped[str] = mapped_column(String(100))
    project: Mapped[str] = mapped_column(String(100))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    models: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    requests_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    tokens_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    created: Mapped[float] = mapped_column(Double)  # unix seconds, as all times here
    expires: Mapped[float | None] = mapped_column(Double)
    revoked: Mapped[float | None] = mapped_column(Double)
    last_used: Mapped[float | None] = mapped_column(Double)


class UsageRow(Base):
    """What a key used of one model version on one day (UTC).

    No foreign key: it is entered whatever has become of the key, as when a saved copy was put back.
    """

    __tablename__ = "usage"

    key: Mapped[str] = mapped_column(String(12), primary_key=True)
    model: Mapped[str] = mapped_column(Text, primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    answer_tokens: Mapped[int] = mapped_column(BigInteger)


class TakingRow(Base):
    """What a key took of its limits in one minute, in all serving processes together."""

    __tablename__ = "takings"

    key: Mapped[str] = mapped_column(String(12), primary_key=True)
    minute: Mapped[int] = mapped_column(BigInteger, primary_key=True)  # unix seconds // 60
    requests: Mapped[int] = mapped_column(BigInteger)
    tokens: Mapped[int] = mapped_column(BigInteger)


class ProjectRow(Base):
    """A project whose shares are not the default ones; null: no limit."""

    __tablename__ = "projects"

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    created: Mapped[float] = mapped_column(Double)
    running_jobs: Mapped[int | None] = mapped_column(BigInteger)
    gpus: Mapped[float | None] = mapped_column(Double)
    storage_bytes: Mapped[int | None] = mapped_column(BigInteger)
    files: Mapped[int | None] = mapped_column(BigInteger)
    queued_jobs: Mapped[int | None] = mapped_column(BigInteger)


class AuditRow(Base):
    """Something that somebody changed; rows are only ever added."""

    __tablename__ = "audit"

    number: Mapped[int] = mapped_column(Counter, primary_key=True)
    at: Mapped[float] = mapped_column(Double)
    project: Mapped[str] = mapped_column(String(100), index=True)
    key: Mapped[str] = mapped_column(String(12))  # empty: the command line, or no key was needed
    action: Mapped[str] = mapped_column(String(40))
    object: Mapped[str] = mapped_column(Text)  # its id
