"""The space file: what a search varies, how it decides, and when it ends."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from ftray.config.base import Config, Tree, apply, parse_overrides, read_tree, validated
from ftray.config.data import HoldoutConfig as HeldOutConfig
from ftray.config.paths import anchored
from ftray.config.run import NAME_PATTERN, RunConfig
from ftray.config.space import Space
from ftray.config.vary import checked_space, needs_ordinary
from ftray.errors import ConfigError

Metric = Literal["eval_loss", "perplexity", "loss"]
Objective = Literal["trained_parameters", "tokens", "seconds"]
Way = Literal["min", "max"]


class RandomConfig(Config):
    """Draws that don't learn from one another; with grids, all of their combinations."""

    kind: Literal["random"] = "random"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """The same seed draws the same trials."""


class OptunaConfig(Config):
    """Tree-structured Parzen estimators (Bergstra et al. 2011): draws near what did well."""

    kind: Literal["optuna"] = "optuna"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """The same seed draws the same first trials; later ones depend on which ended before them."""
    startup_trials: PositiveInt = 10
    """Random draws before it begins to learn; fewer trials than these are a random search."""


SearcherConfig = Annotated[RandomConfig | OptunaConfig, Field(discriminator="kind")]


class NoSchedulerConfig(Config):
    """Every trial trains to its end."""

    kind: Literal["none"] = "none"


class AshaConfig(Config):
    """Stops trials that lag behind others at the same step (Li et al. 2018, arXiv:1810.05934)."""

    kind: Literal["asha"] = "asha"
    grace_steps: PositiveInt | None = None
    """No trial is stopped before; null: the first report."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3
    """One in so many goes on from each rung to the next, which is so many times as far."""
    brackets: PositiveInt = 1
    """More start some trials at later rungs: safer where the early order misleads, and slower."""


class HyperBandConfig(Config):
    """Pauses trials, and goes on with the best of each bracket (Li et al., arXiv:1603.06560)."""

    kind: Literal["hyperband"] = "hyperband"
    reduction_factor: Annotated[float, Field(gt=1)] = 3
    """One in so many goes on from each rung to the next, which is so many times as far."""


class PbtConfig(Config):
    """Copies good trials onto bad ones and changes their rate (arXiv:1711.09846)."""

    kind: Literal["pbt"] = "pbt"
    every_steps: PositiveInt | None = None
    """Steps between copies; null: each report."""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """This share of the trials, the worst, is replaced by copies of the best ones."""
    factors: Annotated[list[PositiveFloat], Field(min_length=2, max_length=2)] = Field(
        default_factory=[1.25, 0.8].copy
    )
    """A copy's learning rate is its donor's times one of the two; its rank stays as it is."""


class MedianConfig(Config):
    """Stops a trial that is worse than the median of the others' averages (Golovin et al. 2017)."""

    kind: Literal["median"] = "median"
    grace_steps: PositiveInt | None = None
    """No trial is stopped before; null: the second report."""
    min_trials: PositiveInt = 3
    """Trials that must have come as far before one is stopped."""


SchedulerConfig = Annotated[
    NoSchedulerConfig | AshaConfig | HyperBandConfig | PbtConfig | MedianConfig,
    Field(discriminator="kind"),
]


class BudgetConfig(Config):
    """When the search ends in good order though trials are left; null: it doesn't."""

    trials: PositiveInt | None = None
    """Trials that may start, of all that `num_samples` and grids would make."""
    seconds: PositiveFloat | None = None
    """Time since the search began, over all its restarts; what was trained until then counts."""
    tokens: PositiveInt | None = None
    """Training tokens of all trials together."""


class HostsConfig(Config):
    """Where trials train: each host holds the base model once, with slots for several trials."""

    count: PositiveInt | Literal["auto"] = "auto"
    """auto: one a GPU, and without GPUs one. Of ordinary trials, that many train at once."""
    gpus: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    """Of a host, which is at most one; auto: 1 where the cluster has GPUs, else 0."""
    cpus: PositiveFloat | Literal["auto"] = "auto"
    """Of a host; auto: an equal share, with 1 CPU left for reading data."""
    slots: PositiveInt | Literal["auto"] = "auto"
    """Trials of a host at once; auto: as many as its memory is estimated to hold."""
    max_losses: Annotated[int, Field(ge=0)] = 3
    """Losses of a host that a trial survives before it counts as failed."""


class HoldoutConfig(HeldOutConfig):
    """Rows that no trial trains on or is measured on: the best trials are measured on them last."""

    path: str | None = None
    """A file of its own; else a share of the rows is set aside."""


class PublishConfig(Config):
    """What the registry gets of a finished search."""

    best: Annotated[int, Field(ge=0)] = 1
    """So many of the best trials become versions; 0: none."""
    alias: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """Let this alias, as `champion`, point at the best one."""
    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """Of the adapter; null: the run's."""


class SearchConfig(Config):
    """One search over run configs."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """Names the search; the same name resumes. null: the run's name."""
    metric: Metric = "eval_loss"
    """What trials are compared by; loss is of training rows, and rewards memorizing them."""
    mode: Way = "min"
    """Whether less of the metric is better."""
    also: dict[Objective, Way] = Field(default_factory=dict)
    """Further objectives for searcher optuna, as in {trained_parameters: min}."""
    space: Annotated[Space, Field(min_length=1)]
    """Dotted run keys, each with its distribution."""
    num_samples: PositiveInt = 16
    """Trials; with grids, each of their combinations so many times."""
    every_steps: PositiveInt | None = None
    """Steps between two reports, at which trials are compared and saved; null: the run's
    eval.every_steps, else an eighth of the longest trial."""
    searcher: SearcherConfig = RandomConfig()
    scheduler: SchedulerConfig = AshaConfig()
    budget: BudgetConfig = BudgetConfig()
    trials: Literal["auto", "packed", "ordinary"] = "auto"
    """packed: many adapters on one base at once; ordinary: each trial is a run of its own; auto:
    packed where the trials can share a base."""
    hosts: HostsConfig = HostsConfig()
    holdout: HoldoutConfig | None = HoldoutConfig()
    """null: the best are measured on nothing that the search has not seen."""
    publish: PublishConfig = PublishConfig()

    @field_validator("searcher", "scheduler", mode="before")
    @classmethod
    def _no_bohb(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and tree.get("kind") == "bohb":
            raise ValueError(
                "bohb needs the package hpbandster, which has had no release since 2018: use"
                " searcher optuna with scheduler asha or hyperband"
            )
        return tree

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        grids = [key for key, draw in self.space.items() if draw.grid is not None]
        if grids and self.searcher.kind == "optuna":
            raise ValueError(f"space.{grids[0]}: optuna draws no grids: use choice")
        if self.also and self.searcher.kind != "optuna":
            raise ValueError("also: further objectives need searcher.kind=optuna")
        if self.scheduler.kind == "pbt" and self.trials == "ordinary":
            raise ValueError("scheduler pbt copies adapter slots: it needs packed trials")
        return self


def load_search(path: Path, run: RunConfig, overrides: Sequence[str] = ()) -> SearchConfig:
    """Read a space file, apply overrides, and check its space against the run that it varies."""
    hint = "tune_spaces/lora.yaml is an example: space: {train.learning_rate: {loguniform: …}}"
    tree = _anchored(read_tree(path, hint), path.resolve().parent)
    changes = parse_overrides(overrides)
    draws = {key: changes.pop(key) for key in list(changes) if key.startswith("space.")}
    tree = _anchored(apply(tree, changes), Path.cwd())
    tree = _with_draws(tree, {key.removeprefix("space."): draw for key, draw in draws.items()})
    return check_search(tree, run, str(path))


def check_search(tree: Tree, run: RunConfig, source: str) -> SearchConfig:
    """Read a space file's tree, and check its space against the run that it varies."""
    search = validated(SearchConfig, tree, source=source)
    space = checked_space(search.space, run, source)
    search = search.model_copy(update={"space": space, "name": search.name or run.name})
    _check_run(search, run, source)
    return search


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell overrides of the run from those of the space file, which begin with `search.`."""
    start = "search."
    of_search = [text.removeprefix(start) for text in overrides if text.startswith(start)]
    return [text for text in overrides if not text.startswith(start)], of_search


def is_packed(search: SearchConfig, run: RunConfig) -> bool:
    """Whether the trials of this search share one base."""
    return search.trials == "packed" or (
        search.trials == "auto" and not needs_ordinary(search.space, run)
    )


def _check_run(search: SearchConfig, run: RunConfig, path: str) -> None:
    why = needs_ordinary(search.space, run)
    if search.trials == "packed" and why:
        raise ConfigError(f"{path}: {why}", "set trials: ordinary, or leave trials out")
    if search.scheduler.kind == "pbt":
        _check_pbt(search, why, path)
    has_eval = run.data.eval is not None or run.data.eval_fraction is not None
    if search.metric != "loss" and not has_eval:
        raise ConfigError(
            f"{path}: metric: {search.metric} needs rows to measure on, and the run has none",
            "set data.eval or data.eval_fraction in the run, or metric: loss in the space file",
        )


def _check_pbt(search: SearchConfig, why: str, path: str) -> None:
    if why:
        raise ConfigError(
            f"{path}: scheduler: pbt copies adapter slots, and {why}", "choose another scheduler"
        )
    if "train.learning_rate" not in search.space:
        raise ConfigError(
            f"{path}: scheduler: pbt changes the learning rate, which is not in the space",
            "add train.learning_rate: {loguniform: [1.0e-5, 1.0e-3]}",
        )


def _with_draws(tree: Tree, draws: Tree) -> Tree:
    """Set distributions by run key, whose dots lead to no sections."""
    space = tree.get("space")
    return {**tree, "space": {**space, **draws}} if draws and isinstance(space, dict) else tree


def _anchored(tree: Tree, folder: Path) -> Tree:
    """Let the hold-out's relative path count from a folder."""
    holdout = tree.get("holdout")
    if not isinstance(holdout, dict) or not isinstance(holdout.get("path"), str):
        return tree
    path = anchored(holdout["path"], folder, "data.eval")
    return {**tree, "holdout": {**holdout, "path": path}}
