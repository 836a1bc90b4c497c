"""An engine without a model, for whatever stands above engines."""

from collections.abc import Callable
from pathlib import Path

import pytest
from echo import EchoEngine


@pytest.fixture(scope="session")
def echo_engine(tiny_folder: Path) -> Callable[..., EchoEngine]:
    """Make engines that echo."""

    def make(*, step_seconds: float = 0.0, room: int = 64) -> EchoEngine:
        return EchoEngine(tiny_folder, step_seconds=step_seconds, room=room)

    return make
