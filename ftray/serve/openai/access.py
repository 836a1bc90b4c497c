"""Who asks, and what they may: what the routes need of the accounts, and the answer without any.

The implementation with keys, limits and a ledger is in `ftray.accounts`. It matches these
protocols by its shape, and methods take plain values, so that neither room's types bind the other.
"""

from dataclasses import dataclass
from typing import Protocol

DEFAULT_PROJECT = "default"  # of whoever needs no key


class Principal(Protocol):
    """Whose key came with a request."""

    @property
    def key(self) -> str:
        """The key's public id; empty where no key is needed."""
        ...

    @property
    def project(self) -> str:
        """The project that the key belongs to."""
        ...

    @property
    def scopes(self) -> frozenset[str]:
        """What the key may do: `serve` (call models), `train` (also delete them), `admin` (all)."""
        ...

    @property
    def models(self) -> frozenset[str] | None:
        """The names of the adapters that it may see (`base` for the base model); None: all."""
        ...


class Allowance(Protocol):
    """One limit of a key, for the `x-ratelimit-*` headers."""

    @property
    def limit(self) -> int:
        """How many requests or tokens in a minute."""
        ...

    @property
    def remaining(self) -> int:
        """How many are left now."""
        ...

    @property
    def reset(self) -> float:
        """Seconds until all are there again."""
        ...


class Admission(Protocol):
    """Whether a request may go on, within its key's limits."""

    @property
    def refusal(self) -> str:
        """Why it may not, for the user; empty: it may."""
        ...

    @property
    def wait(self) -> float | None:
        """Seconds after which a refused one may try again; None: never (larger than the limit)."""
        ...

    @property
    def requests(self) -> Allowance | None:
        """The limit of requests; None: there is none."""
        ...

    @property
    def tokens(self) -> Allowance | None:
        """The limit of tokens; None: there is none."""
        ...


class Access(Protocol):
    """Keys, limits and the ledger. `admit` and `used` are called from the event loop: no I/O."""

    async def authenticate(self, secret: str | None) -> Principal | None:
        """Whose secret it is; None: nobody's, revoked or expired. `secret` None: none was sent."""
        ...

    def admit(self, key: str, tokens: int) -> Admission:
        """Count a request and reserve the tokens that it may take at most."""
        ...

    def used(self, key: str, model: str, reserved: int, prompt: int, answer: int) -> None:
        """Give back what was reserved and not used, and enter it in the ledger.

        Called exactly once for each admitted request, also for one that failed or was cancelled.
        `model` is a version (`name@3`) or the base's name, `""` where it failed before.
        """
        ...


@dataclass(frozen=True)
class Visitor:
    """Somebody without a key, where none is needed."""

    key: str = ""
    project: str = ""
    scopes: frozenset[str] = frozenset({"serve", "train", "admin"})
    models: frozenset[str] | None = None


@dataclass(frozen=True)
class Admitted:
    """An admission without limits."""

    refusal: str = ""
    wait: float | None = None
    requests: Allowance | None = None
    tokens: Allowance | None = None


class OpenAccess:
    """Everybody may do everything: a server on loopback before the first key exists."""

    async def authenticate(self, secret: str | None) -> Principal | None:
        """Let everybody in; a client may send any key."""
        return Visitor()

    def admit(self, key: str, tokens: int) -> Admission:
        """Admit it."""
        return Admitted()

    def used(self, key: str, model: str, reserved: int, prompt: int, answer: int) -> None:
        """Forget it."""
