"""A server with the fine-tuning API for each test."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # for what these tests share with the soak

from place import Place, serving


@pytest.fixture
def place(url: str, tmp_path: Path, tiny_folder: Path) -> Iterator[Place]:
    """On each of the two databases."""
    with serving(url, tmp_path, tiny_folder) as found:
        yield found


@pytest.fixture
def file_place(tmp_path: Path, tiny_folder: Path) -> Iterator[Place]:
    """On SQLite, for what does not depend on the database."""
    with serving(f"sqlite:///{tmp_path}/accounts.db", tmp_path, tiny_folder) as found:
        yield found
