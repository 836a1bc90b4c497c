"""How much one engine takes on: numbers that its owner sets, each with its trade-off."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineLimits:
    """Bounds of one embedded engine."""

    rows: int = 16
    """Choices that are decoded together: more give more tokens a second, later for each."""
    waiting: int = 256
    """Generations that wait for a row; the next one is refused."""
    kv_bytes: int = 2 << 30
    """Keys and values of all rows; a prompt on its way in takes its own share once more."""
    adapter_bytes: int = 2 << 30
    """Resident adapters; those of the running batch are copied once more for it."""
    prefill_tokens: int = 512
    """Prompt tokens computed between two steps of the running rows, which wait for them."""
    max_length: int | None = None
    """Tokens of prompt and answer together; None: what the model was made for."""
    threads: int | None = None
    """Of the matrix products; None: what torch finds."""
    failure_seconds: float = 5.0
    """An adapter that could not be loaded is not read again for so long."""
    thrash_seconds: float = 60.0
    """An adapter that is loaded again so soon after its eviction counts as a thrash."""
    lease_seconds: float = 5.0
    """A loaded adapter stays for so long even if nothing has asked for it yet."""
