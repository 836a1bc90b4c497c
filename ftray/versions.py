"""What runs here: two machines work together only if it is the same on both."""

import platform
from dataclasses import dataclass
from importlib import metadata

from ftray import __version__


@dataclass(frozen=True)
class Versions:
    """Versions that have to agree between who submits and what a cluster runs."""

    ftray: str
    ray: str
    python: str  # without the patch level, which changes no pickle

    def __str__(self) -> str:
        return f"ftray {self.ftray}, Ray {self.ray}, Python {self.python}"


def versions() -> Versions:
    """Return those of this process."""
    python = ".".join(platform.python_version_tuple()[:2])
    return Versions(__version__, metadata.version("ray"), python)


def parse(text: str) -> Versions:
    """Read what `encode` wrote."""
    ftray, ray, python = text.split("/")
    return Versions(ftray, ray, python)


def encode(found: Versions) -> str:
    """Return them as one word of a command line."""
    return f"{found.ftray}/{found.ray}/{found.python}"
