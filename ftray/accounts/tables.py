"""The tables of accounts, as they are today; `migrations` says how they came to be."""

from datetime import date

from sqlalchemy import JSON, BigInteger, Double, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from ftray.accounts.database import Base


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
