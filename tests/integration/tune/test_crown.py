"""The end of a search on a cluster: measured, published, and pointed at by an alias."""

import json
from pathlib import Path

import pytest
import torch

from ftray import registry
from ftray.config.base import override
from ftray.config.run import RunConfig
from ftray.config.search import SearchConfig
from ftray.model.adapter import adapter_state
from ftray.train.trainee import load_for_training
from ftray.tune.crown import crown
from ftray.tune.holdout import held_out
from ftray.tune.packed.state import State, write_state
from ftray.tune.results import SearchResult, TrialResult
from ftray.tune.winners import searched

RANKS = {"one": 4, "other": 8}


@pytest.fixture
def result(tiny_folder: Path, tmp_path: Path) -> SearchResult:
    """Two trials that have not learned anything, of which the search prefers the first."""
    rows = [{"prompt": f"{n}?", "completion": f"it is {n}"} for n in range(24)]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    tree = {
        "name": "tickets",
        "model": {"name": str(tiny_folder)},
        "data": {"train": str(data), "eval": str(data), "max_length": 64},
        "train": {"max_steps": 4},
        "storage": str(tmp_path / "root"),
    }
    search = SearchConfig.model_validate(
        {
            "name": "ranks",
            "space": {"adapter.rank": {"choice": list(RANKS.values())}},
            "publish": {"best": 1, "alias": "champion"},
        }
    )
    config = searched(RunConfig.model_validate(tree), search)
    trials = [_trial(config, tmp_path, name, place) for place, name in enumerate(RANKS)]
    return SearchResult(
        name="ranks",
        metric="eval_loss",
        mode="min",
        folder=str(tmp_path),
        config=config,
        search=search,
        trials=trials,
        seconds=1.0,
        host_seconds=1.0,
        hosts=1,
        gpus_per_host=0.0,
        saved_against_solo_seconds=None,
    )


def _trial(config: RunConfig, root: Path, name: str, place: int) -> TrialResult:
    draw = {"adapter.rank": RANKS[name]}
    own = override(config, draw)
    attached = load_for_training(own, Path(own.model.name), torch.device("cpu"))
    folder = str(root / name)
    write_state(folder, State(name, own, 2, 2, adapter_state(attached.model), {}))
    return TrialResult(
        id=name,
        values=dict(draw),
        state="finished",
        steps=2,
        tokens=100,
        seconds=1.0,
        metric=1.0 + place,
        curve=[(2, 1.0 + place)],
        error="",
        state_folder=folder,
    )


@pytest.mark.usefixtures("ray_cluster")
def test_the_best_becomes_the_champion_and_stays_it(result: SearchResult):
    holdout = held_out(result.config, result.search)
    first = crown(result, num_cpus=1, num_gpus=0, holdout=holdout)
    assert (first.alias, first.holdout) == ("tickets@champion", "50% of the eval rows, 12 rows")
    assert [one.trial for one in first.winners] == ["one", "other"]
    assert [one.ref for one in first.winners] == ["tickets@1", None]
    assert all(one.held_out is not None for one in first.winners)
    again = crown(result, num_cpus=1, num_gpus=0)
    assert again == first
    root = str(result.config.storage)
    assert registry.aliases(root, "tickets") == {"champion": 1}
    folder = Path(root) / "adapters" / "tickets" / "aliases" / "champion"
    assert [file.name for file in folder.iterdir()] == ["1.json"]
