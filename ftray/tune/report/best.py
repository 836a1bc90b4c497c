"""The best trial as a run file that `ftray train` accepts, and that trains the same again."""

from typing import Any

import yaml

from ftray.config.base import override
from ftray.config.run import RunConfig
from ftray.tune.results import SearchResult, TrialResult
from ftray.tune.winners import ranked

NAME = "best.yaml"


def best_yaml(result: SearchResult) -> str | None:
    """Return the run file of the best trial, None where no trial has a result.

    It holds what differs from the defaults. The run gets a name of its own: that of the search may
    be taken by a run with other values.
    """
    placed = ranked(result)
    if not placed:
        return None
    config = override(result.config, {**placed[0].values, "name": _name(result.config.name)})
    text = yaml.safe_dump(sparse(config), sort_keys=False, allow_unicode=True)
    return _heading(result, placed[0]) + text


def sparse(config: RunConfig) -> dict[str, Any]:
    """Return a run's tree without what is a default anyway."""
    whole = config.model_dump(mode="json")
    tree = _filled(config.model_dump(mode="json", exclude_defaults=True), whole)
    # a method is its own section's default, but says which section it is
    tree["adapter"] = {"method": config.adapter.method} | tree.get("adapter", {})
    in_order = [key for key in RunConfig.model_fields if key in tree]
    return {key: tree[key] for key in in_order}


def _filled(tree: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """Write a section out that is there, which is no default, but has only defaults in it."""
    return {
        key: _filled(value or whole[key], whole[key]) if isinstance(value, dict) else value
        for key, value in tree.items()
    }


_ENDING = "-best"
_LONGEST_NAME = 63


def _name(name: str) -> str:
    return name[: _LONGEST_NAME - len(_ENDING)] + _ENDING


def _heading(result: SearchResult, best: TrialResult) -> str:
    lines = [
        f"ftray train {NAME}",
        f"The best of {len(result.trials)} trials of search '{result.name}': trial {best.id},"
        f" {result.metric} {best.metric:.4f}.",
    ]
    if result.config.data.holdout is not None:
        lines.append("data.holdout are the rows that the best were measured on at the end.")
    if result.search.scheduler.kind == "pbt":
        lines.append(
            "The scheduler changed its learning rate on the way: this is the last one, and a run"
        )
        lines.append("that has it from the start will not end where the trial did.")
    elif best.state != "finished":
        lines.append(f"The trial was {_ended(best)} after {best.steps} steps; this goes on.")
    return "".join(f"# {line}\n" for line in lines)


def _ended(best: TrialResult) -> str:
    return "stopped" if best.state == "stopped" else "still running"
