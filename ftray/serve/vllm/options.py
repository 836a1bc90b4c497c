"""How a vLLM server is run: numbers and paths that its owner sets."""

import os
from dataclasses import dataclass
from pathlib import Path

from ftray.errors import ServeError

PYTHON_VARIABLE = "FTRAY_VLLM_PYTHON"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Of adapters, as vLLM has kernels and buffers for them."""


@dataclass(frozen=True)
class VllmOptions:
    """Bounds of one vLLM server and of its supervision."""

    python: str | None = None
    """Of the environment that holds vLLM; None: what $FTRAY_VLLM_PYTHON names."""
    rows: int = 16
    """Choices that are decoded together."""
    waiting: int = 256
    """Generations beyond them; the next one is refused."""
    kv_bytes: int = 2 << 30
    """Keys and values of all rows."""
    adapter_bytes: int = 2 << 30
    """How many adapters of the largest rank are kept in the server's memory."""
    active_adapters: int = 8
    """Adapters in one batch; their slots are allocated at the largest rank."""
    largest_rank: int = 64
    """An adapter of a larger rank is refused; rounded up to what vLLM has."""
    prefill_tokens: int = 512
    """Prompt tokens computed in a step beside the running rows."""
    max_length: int | None = None
    """Tokens of prompt and answer together; None: what the model and the memory allow."""
    eager: bool = False
    """Don't compile: starts sooner, decodes slower."""
    start_seconds: float = 900.0
    """A server that does not answer by then is taken for hung."""
    stop_seconds: float = 10.0
    """Between SIGTERM and SIGKILL."""
    backoff_seconds: float = 1.0
    """Before the first restart; doubled with each one that follows soon."""
    most_failures: int = 5
    """In a row; then the engine is dead."""
    failure_seconds: float = 5.0
    """An adapter that could not be loaded is not tried again for so long."""
    lease_seconds: float = 5.0
    """A loaded adapter stays for so long even if nothing has asked for it yet."""
    thrash_seconds: float = 60.0
    """An adapter that is loaded again so soon after its eviction counts as a thrash."""


def find_python(options: VllmOptions) -> Path:
    """Return the interpreter to run vLLM with; raises ServeError with how to get one."""
    named = options.python or os.environ.get(PYTHON_VARIABLE)
    if named is None:
        raise ServeError(
            "no environment with vLLM is named: its pins clash with ours, so it needs one of its"
            " own",
            f"{_RECIPE}; then set engine.vllm.python or ${PYTHON_VARIABLE} to its bin/python",
        )
    path = Path(named).expanduser()
    if not path.is_file():
        raise ServeError(f"there is no Python at {path} to run vLLM with", _RECIPE)
    return path.absolute()  # not resolved: a venv's python is a link, and knows itself by its place


def padded_rank(rank: int) -> int:
    """Return the smallest rank of vLLM's that holds it; raises ValueError beyond the largest."""
    for allowed in RANKS:
        if rank <= allowed:
            return allowed
    raise ValueError(f"rank {rank} is above {RANKS[-1]}, the largest that vLLM can run")


_RECIPE = "python -m venv .venv-vllm && .venv-vllm/bin/pip install vllm (on CPU: make .venv-vllm)"
