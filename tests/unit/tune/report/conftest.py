"""Searches as the driver hands them to the report."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from ftray.config.base import validated
from ftray.config.run import RunConfig
from ftray.config.search import SearchConfig
from ftray.tune.results import SearchResult, TrialResult, TrialState

SPACE: dict[str, Any] = {
    "adapter.rank": {"choice": [4, 8, 16, 32]},
    "adapter.target": {"choice": ["all-linear", ["q_proj", "v_proj"]]},
    "train.learning_rate": {"loguniform": [1e-5, 1e-2]},
    "train.weight_decay": {"uniform": [0.0, 0.1]},
    "train.schedule": {"choice": ["cosine", "linear", "constant"]},
    "train.warmup_steps": {"int": [0, 10], "when": {"train.schedule": ["cosine", "linear"]}},
}

Searched = Callable[..., SearchResult]


@pytest.fixture(scope="session")
def run() -> RunConfig:
    tree = {
        "name": "support-bot",
        "data": {"train": "/data/train.jsonl", "eval": "/data/eval.jsonl", "max_length": 512},
        "train": {"max_steps": 81},
    }
    return validated(RunConfig, tree, "test")


@pytest.fixture(scope="session")
def searched(run: RunConfig) -> Searched:
    """Make a search whose loss depends on the learning rate, and a little on the rank."""

    def make(count: int, changes: dict[str, Any] | None = None) -> SearchResult:
        tree = {"name": "bot-ranks", "space": SPACE, **(changes or {})}
        search = validated(SearchConfig, tree, "test")
        drawing = random.Random(1)
        trials = [a_trial(number, drawing, search) for number in range(count)]
        return SearchResult(
            name="bot-ranks",
            metric=search.metric,
            mode=search.mode,
            folder="/store/searches/bot-ranks",
            config=run,
            search=search,
            trials=trials,
            seconds=600.0,
            host_seconds=580.0,
            hosts=1,
            gpus_per_host=1.0,
            saved_against_solo_seconds=2320.0,
        )

    return make


def a_trial(number: int, drawing: random.Random, search: SearchConfig) -> TrialResult:
    values = drawn_values(drawing, search)
    best = final_loss(values) + drawing.uniform(0, 0.03)
    rate = values.get("train.learning_rate", 1e-4)
    state: TrialState = "finished" if best < 1.5 else "stopped"
    assert isinstance(rate, float)
    if rate > 5e-3:
        state = "failed"
    steps = {"finished": 81, "stopped": drawing.choice([9, 27]), "failed": 12}[state]
    curve = [(s, best + 1.5 * math.exp(-s / 20)) for s in range(3, steps + 1, 3)]
    return TrialResult(
        id=f"{number:05d}",
        values=values,
        state=state,
        steps=steps,
        tokens=steps * 4096,
        seconds=steps * 0.5,
        metric=curve[-1][1] if state != "failed" else None,
        curve=curve,
        error="the loss is no number at step 12" if state == "failed" else "",
        state_folder="",
    )


def drawn_values(drawing: random.Random, search: SearchConfig) -> dict[str, object]:
    values: dict[str, object] = {}
    for key, draw in search.space.items():
        if key == "train.warmup_steps" and values.get("train.schedule") == "constant":
            continue
        low, high = draw.bounds
        match draw.kind:
            case "choice" | "grid":
                values[key] = drawing.choice(draw.options or [])
            case "loguniform":
                values[key] = math.exp(drawing.uniform(math.log(low), math.log(high)))
            case "int":
                values[key] = drawing.randint(int(low), int(high))
            case "uniform":
                values[key] = drawing.uniform(low, high)
    return values


def final_loss(values: dict[str, object]) -> float:
    rate, rank = values.get("train.learning_rate", 1e-4), values.get("adapter.rank", 8)
    assert isinstance(rate, float)
    assert isinstance(rank, int)
    return 1.3 + (math.log10(rate) + 3.3) ** 2 * 0.4 - 0.05 * math.log2(rank / 4)
