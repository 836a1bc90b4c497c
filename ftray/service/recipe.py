"""From a request to the config of a run, and of a search: pure, and with every `auto` resolved."""

import math
import re
from dataclasses import dataclass
from typing import Any

from ftray.config.base import validated
from ftray.config.run import ModelConfig, RunConfig
from ftray.config.search import check_search
from ftray.errors import ConfigError
from ftray.serve.openai.errors import INVALID, ApiError
from ftray.service.requests import JobRequest

_LEARNING_RATE = 2e-4  # that a multiplier of 1 means
_EPOCHS = 3
_BATCH = 16
_MOST_TRIALS = 256
_CHECKPOINTS = 3  # that are kept, and become models
_MAY_BE_SEARCHED = {
    *("num_samples", "metric", "mode", "every_steps", "searcher", "scheduler", "budget", "space")
}
_MAY_VARY = {
    *("train.learning_rate", "train.warmup_steps", "train.weight_decay", "train.schedule"),
    *("train.max_grad_norm", "train.global_batch_size"),
    *("adapter.rank", "adapter.alpha", "adapter.dropout", "adapter.target", "adapter.rslora"),
}


@dataclass(frozen=True)
class Basis:
    """What a job stands on: the base model, perhaps an adapter to go on from, and its data."""

    name: str  # of the run and the adapter
    short: str
    project: str
    base: ModelConfig
    init_from: str | None
    training: str  # paths, our own
    validation: str | None
    rows: int
    storage: str
    cpus_per_worker: float  # not what would take all that the cluster has, as `auto` does


@dataclass(frozen=True)
class Recipe:
    """What is run, and how its request is shown."""

    run: dict[str, Any]
    space: dict[str, Any] | None
    shown: dict[str, Any]


def make_recipe(request: JobRequest, basis: Basis, seed: int) -> Recipe:
    """Resolve a request; raises ApiError for what makes no run."""
    batch, epochs = _batch(request, basis), _epochs(request)
    wanted = request.wanted.learning_rate_multiplier
    multiplier = 1.0 if isinstance(wanted, str) else wanted
    try:
        run = validated(RunConfig, _run_tree(request, basis, seed), source="the request")
        space = _space(request, run)
    except ConfigError as error:
        raise ApiError(INVALID, error.message.replace(basis.storage, "…"), "ftray") from None
    numbers = {"n_epochs": epochs, "batch_size": batch, "learning_rate_multiplier": multiplier}
    shown = {
        "seed": seed,
        "suffix": request.suffix,
        "hyperparameters": numbers,
        "method": {"type": "supervised", "supervised": {"hyperparameters": numbers}},
        "integrations": [one.model_dump(mode="json") for one in request.integrations],
        "ftray": request.ftray.model_dump(mode="json"),
    }
    return Recipe(run.model_dump(mode="json"), space, shown)


def tuned_name(base: str, project: str, suffix: str | None, short: str) -> str:
    """Return what clients call the result."""
    parts = [re.sub(r"[:\s]+", "-", part) for part in (base, project, suffix or "")]
    return ":".join(["ft", *parts, short])


def _run_tree(request: JobRequest, basis: Basis, seed: int) -> dict[str, Any]:
    wanted, options = request.wanted, request.ftray
    batch, epochs = _batch(request, basis), _epochs(request)
    per_epoch = math.ceil(basis.rows / batch)
    steps = min(per_epoch * epochs, options.max_steps or per_epoch * epochs)
    multiplier = wanted.learning_rate_multiplier
    rate = _LEARNING_RATE * (1.0 if isinstance(multiplier, str) else multiplier)
    adapter = {
        "method": "qlora" if options.quantization == "nf4" else "lora",
        "rank": options.rank,
        "alpha": options.alpha,
        "target": options.targets,
        "init_from": basis.init_from,
    }
    model = tuned_name(basis.base.name, basis.project, request.suffix, basis.short)
    return {
        "name": basis.name,
        "model": basis.base.model_dump(mode="json"),
        "adapter": {key: value for key, value in adapter.items() if value is not None},
        "data": {
            "train": basis.training,
            "eval": basis.validation,
            "packing": False,  # so that `batch_size` counts examples
            "max_length": options.max_length or 2048,
        },
        "train": {
            "learning_rate": options.learning_rate or rate,
            "epochs": epochs,
            "max_steps": options.max_steps,
            "global_batch_size": batch,
            "seed": seed,
        },
        "eval": {"samples": 0},
        "scaling": {"num_workers": options.workers, "cpus_per_worker": basis.cpus_per_worker},
        "checkpoint": {
            "every_steps": max(1, min(per_epoch, math.ceil(steps / _CHECKPOINTS))),
            "keep": _CHECKPOINTS,
        },
        "publish": {"checkpoints": True, "project": basis.project, "model": model},
        "tracking": [] if not request.integrations else ["wandb"],
        "storage": basis.storage,
    }


def _epochs(request: JobRequest) -> int:
    wanted = request.wanted.n_epochs
    return _EPOCHS if isinstance(wanted, str) else wanted


def _batch(request: JobRequest, basis: Basis) -> int:
    """Return the examples of a step: a multiple of the workers."""
    wanted, workers = request.wanted.batch_size, request.ftray.workers
    if not isinstance(wanted, str):
        return wanted
    return math.ceil(max(1, min(_BATCH, basis.rows)) / workers) * workers


def _space(request: JobRequest, run: RunConfig) -> dict[str, Any] | None:
    """Check a search: its keys name neither files nor other people's things."""
    tree = request.ftray.search
    if tree is None:
        return None
    drawn = tree.get("space")
    keys = [*tree, *(f"space.{key}" for key in drawn)] if isinstance(drawn, dict) else [*tree]
    known = _MAY_BE_SEARCHED | {f"space.{key}" for key in _MAY_VARY}
    if refused := sorted(key[:100] for key in keys if key not in known):
        raise ApiError(INVALID, f"ftray.search.{refused[0]} cannot be set", "ftray.search")
    whole = {"publish": {"best": 1, "name": run.name}, "holdout": None, **tree}
    whole["hosts"] = {"count": 1, "cpus": run.scaling.cpus_per_worker}
    if run.data.eval is None:
        whole = {"metric": "loss", **whole}
    if check_search(whole, run, "ftray.search").num_samples > _MOST_TRIALS:
        raise ApiError(INVALID, f"num_samples is at most {_MOST_TRIALS}", "ftray.search")
    return whole
