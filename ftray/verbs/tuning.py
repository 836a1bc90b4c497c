"""The verb that searches."""

from argparse import ArgumentParser

from ftray import answers
from ftray.config.describe import described
from ftray.config.search import (
    AshaConfig,
    HyperBandConfig,
    MedianConfig,
    OptunaConfig,
    PbtConfig,
    RandomConfig,
    SearchConfig,
)
from ftray.config.space import DrawConfig
from ftray.verbs.parts import Verbs, add_cluster, add_overrides, new_verb

_KINDS = (RandomConfig, OptunaConfig, AshaConfig, HyperBandConfig, PbtConfig, MedianConfig)


def add_tune_verb(top: "Verbs[ArgumentParser]") -> None:
    """tune."""
    verb = new_verb(
        top,
        "tune",
        "search ranks, learning rates and more: many trials on one copy of the base model",
        answers.tune,
        [
            "ftray tune run.yaml tune_spaces/lora.yaml",
            "ftray tune run.yaml space.yaml train.max_steps=200 search.num_samples=32",
            "ftray tune run.yaml space.yaml search.budget.seconds=3600 search.scheduler.kind=none",
        ],
        epilog=_settings(),
    )
    verb.add_argument("run", metavar="RUN.yaml", help="the run file that trials vary")
    verb.add_argument(
        "space", metavar="SPACE.yaml", help="the space file, as tune_spaces/lora.yaml"
    )
    add_overrides(verb)
    add_cluster(verb)
    again = "delete a search of that name first; what it published stays"
    verb.add_argument("--overwrite", action="store_true", help=again)


def _settings() -> str:
    parts = [
        "settings of the space file; on the command line they begin with search., as in",
        "search.num_samples=32:",
        described(SearchConfig, ""),
        "",
        "a distribution, as in train.learning_rate: {loguniform: [1.0e-5, 1.0e-3]}:",
        described(DrawConfig, "space.KEY"),
        "",
        "searchers and schedulers:",
    ]
    for kind in _KINDS:
        section = "searcher" if kind in (RandomConfig, OptunaConfig) else "scheduler"
        parts.append(described(kind, section))
    parts += ["", "the same command again goes on with a search that was interrupted"]
    return "\n".join(parts)
