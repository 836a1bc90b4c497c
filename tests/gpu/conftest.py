"""What all tests on a GPU share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    """Begin as a run does: after eight kinds of a layer torch compiles no more in a process."""
    torch.compiler.reset()
