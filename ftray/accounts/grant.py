"""What API keys and projects may do. Without SQLAlchemy, so that the command line stays light."""

import time
from dataclasses import dataclass
from typing import Literal

from ftray.errors import ConfigError, did_you_mean
from ftray.records import check_name

SCOPES = ("serve", "train", "admin")

# What a role means: call models; also upload, train and delete; also read the audit log.
ROLES: dict[str, tuple[str, ...]] = {
    "inference": ("serve",),
    "member": ("serve", "train"),
    "admin": ("serve", "train", "admin"),
}
DEFAULT_PROJECT = "default"
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Quota:
    """The most that a project may use at once; None: no limit."""

    running_jobs: int | None = 4
    queued_jobs: int | None = 1000
    gpus: float | None = None
    storage_bytes: int | None = 100 * GIB  # of files, runs and models
    files: int | None = 1000


@dataclass(frozen=True, kw_only=True)
class Grant:
    """What a key is for, and what it may do."""

    name: str
    project: str = DEFAULT_PROJECT
    scopes: tuple[str, ...] = ("serve",)
    models: tuple[str, ...] | None = None  # adapters by name, `base` for the base model; None: all
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # of prompts and answers
    expires: float | None = None  # unix seconds


@dataclass(frozen=True, kw_only=True)
class Key(Grant):
    """A key as it is known to everybody."""

    id: str
    created: float
    revoked: float | None = None
    last_used: float | None = None  # within about a second

    @property
    def state(self) -> Literal["active", "expired", "revoked"]:
        """Whether it opens anything now."""
        if self.revoked is not None:
            return "revoked"
        return "active" if self.is_valid(time.time()) else "expired"

    def is_valid(self, now: float) -> bool:
        """Whether it opens anything at a time in unix seconds."""
        return self.revoked is None and (self.expires is None or now < self.expires)


def check_grant(grant: Grant) -> None:
    """Raise ConfigError for what makes no sense."""
    _check_text("a key's name", grant.name)
    check_project(grant.project)
    _check_rights(grant)
    for limit in (grant.requests_per_minute, grant.tokens_per_minute):
        if limit is not None and not 1 <= limit <= _MOST:
            raise ConfigError(f"a limit is a number from 1 to {_MOST:,} a minute, not {limit}")
    if grant.expires is not None and grant.expires <= time.time():
        raise ConfigError("a key that has already expired", "give a time to come, as in 30d")


_MOST = 10**12


def check_project(name: str) -> None:
    """Raise ConfigError unless a project can be called so."""
    _check_text("a project's name", name)


def _check_text(what: str, text: str) -> None:
    if not (0 < len(text) <= 100 and text.isprintable() and text == text.strip()):
        raise ConfigError(f"{what} has 1 to 100 printable characters, not {text!r}")


def _check_rights(grant: Grant) -> None:
    for scope in grant.scopes:
        if scope not in SCOPES:
            raise ConfigError(f"a key has no scope '{scope}'", did_you_mean(scope, SCOPES))
    for model in grant.models or ():
        try:
            check_name(model, "adapter")
        except ValueError as error:
            hint = "a name without its version: ftray adapters list"
            raise ConfigError(str(error), hint) from None
    if not grant.scopes or grant.models == ():
        raise ConfigError(
            "a key that may do nothing", "give it a scope, and a model or all of them"
        )
