"""Ordinary trials (being written)."""

from ftray.config.run import RunConfig
from ftray.config.search import SearchConfig
from ftray.errors import ConfigError
from ftray.tune.folder import Opened
from ftray.tune.used import Used


def run_ordinary(base: RunConfig, asked: SearchConfig, opened: Opened) -> Used:
    """Run each trial as a run of its own."""
    raise ConfigError("ordinary trials: not yet")
