"""The service on a cluster of its own, with the built-in model cut to two layers."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))  # for what these tests share with the soak

from head import free_port
from hosted import Hosted


@pytest.fixture
def hosted(
    request: pytest.FixtureRequest, url: str, small_model: Path, tmp_path: Path
) -> Iterator[Hosted]:
    """On each of the two databases, open to everybody until the first key is made."""
    app: dict[str, Any] = {
        "model": {"name": str(small_model)},
        "engine": {"kv_gib": 0.2, "adapter_gib": 0.2, "rows": 4, "threads": 1},
        "storage": str(tmp_path / "root"),
        "database": url,
        "access": "open_until_first_key",
        "jobs": {"retry_seconds": 1},
    }
    found = Hosted(tmp_path / "host", app, free_port())
    try:
        yield found.wait_until_ready()
    finally:
        found.close()
