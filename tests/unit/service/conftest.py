"""A server with the fine-tuning API for each test."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # for what these tests share with the soak

from place import Place, serving
from processes import Forks, Processes, forking


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """What processes of jobs are forked from."""
    with forking() as found:
        yield found


@pytest.fixture
def launcher(tmp_path: Path, forks: Forks) -> Iterator[Processes]:
    """A launcher without processes."""
    found = Processes(tmp_path / "jobs", forks)
    yield found
    found.close()


@pytest.fixture
def place(
    ready_url: str, tmp_path: Path, tiny_folder: Path, launcher: Processes
) -> Iterator[Place]:
    """On each of the two databases."""
    with serving(ready_url, tmp_path, tiny_folder, launcher) as found:
        yield found


@pytest.fixture
def file_place(
    file_url: str, tmp_path: Path, tiny_folder: Path, launcher: Processes
) -> Iterator[Place]:
    """On SQLite, for what does not depend on the database."""
    with serving(file_url, tmp_path, tiny_folder, launcher) as found:
        yield found
