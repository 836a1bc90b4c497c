"""The secret of an API key: how it is made, recognized, and compared without being kept."""

import hashlib
import hmac
import re
import secrets
import string
from dataclasses import dataclass, field

_ID = string.ascii_lowercase + string.digits
_RANDOM = string.ascii_letters + string.digits
_PATTERN = re.compile(r"ft-([a-z0-9]{12})-[A-Za-z0-9]{40}")


@dataclass(frozen=True)
class Secret:
    """What a client sends: `ft-`, the key's public id, and 238 random bits."""

    id: str
    text: str = field(repr=False)

    @property
    def digest(self) -> str:
        """Its SHA-256 in hex: what is stored.

        Slow hashes such as bcrypt are for passwords, which can be guessed. 238 random bits cannot,
        whatever a guess costs, and a slow hash would be paid for in each request.
        """
        return hashlib.sha256(self.text.encode()).hexdigest()

    def matches(self, digest: str) -> bool:
        """Compare with a stored digest in a time that tells nothing."""
        return hmac.compare_digest(self.digest, digest)


def new_secret() -> Secret:
    """Draw a key's public id and its secret."""
    id = "".join(secrets.choice(_ID) for _ in range(12))
    return Secret(id, f"ft-{id}-{''.join(secrets.choice(_RANDOM) for _ in range(40))}")


def parse_secret(text: str) -> Secret | None:
    """Return what a client sent as a secret, None if it can be none: cut off, or something else."""
    found = _PATTERN.fullmatch(text)
    return Secret(found[1], text) if found else None
