"""Adapters that could not be loaded: refused for a while without being read again."""

import time

from ftray.errors import FtrayError, first_line
from ftray.serve.protocol import AdapterSource, RefusedError


class Failures:
    """Remembers each for so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._kept: dict[str, tuple[float, RefusedError]] = {}

    def remembered(self, source: AdapterSource, error: Exception) -> RefusedError:
        """Return the refusal that an error means from now on."""
        name, reason, hint = source.name or source.digest, first_line(error), ""
        if isinstance(error, FtrayError):
            reason, hint = error.message, error.hint
        refused = RefusedError(f"adapter {name}: {reason}", hint, code="bad_adapter")
        now = time.monotonic()
        recent = {d: kept for d, kept in self._kept.items() if now - kept[0] < self._seconds}
        self._kept = {**recent, source.digest: (now, refused)}
        return refused

    def refuse_again(self, digest: str) -> None:
        """Raise what was remembered."""
        failed = self._kept.get(digest)
        if failed and time.monotonic() - failed[0] < self._seconds:
            raise RefusedError(*failed[1].args)
