"""One trial at a time with Ray Tune alone, as a user would write it, with ftray's own steps.

Run by tune.py with a file of settings. Each trial is a process of Ray Tune's that loads the base
and trains one adapter on tokens that were made once; nothing of `ftray.tune` is in it but the
reading of tables.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from ray import tune

from ftray.config.base import override
from ftray.config.data import sources_of
from ftray.config.run import RunConfig
from ftray.connection import connected
from ftray.data.batching.batches import EpochBatches, eval_packs
from ftray.data.batching.selection import eval_samples, training_samples
from ftray.data.tokens.cache import ShardCache
from ftray.data.tokens.pipeline import make_all, plan_tokens
from ftray.data.tokens.rows import Rows
from ftray.train.optim import build_optimizer, learning_rate, set_learning_rate
from ftray.train.parallel import Place
from ftray.train.step import eval_loss, micro_batch, share, train_step
from ftray.train.trainee import build_trainee, random_state


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    config = RunConfig.model_validate(settings["run"])
    with connected(None):
        fixed = {"run": settings["run"], "tokens": _tokens(config), "cpus": settings["cpus"]}
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(trial, fixed=fixed), {"cpu": settings["cpus"]}
            ),
            param_space={key: tune.grid_search(some) for key, some in settings["space"].items()},
            tune_config=tune.TuneConfig(
                metric="eval_loss", mode="min", max_concurrent_trials=settings["at_once"]
            ),
            run_config=tune.RunConfig(
                name="peer", storage_path=str(Path(settings["root"]) / "tune"), verbose=0
            ),
        )
        results = tuner.fit()
        found = [results[number] for number in range(len(results))]
        said = [[one.config, (one.metrics or {})["eval_loss"]] for one in found]
    Path(settings["answer"]).write_text(json.dumps({"losses": said}))


def trial(draw: dict[str, Any], fixed: dict[str, Any]) -> None:
    """Train one trial to its end, and measure it once."""
    torch.set_num_threads(int(fixed["cpus"]))
    config = override(RunConfig.model_validate(fixed["run"]), draw)
    train, place = config.train, Place(0, 1, torch.device("cpu"))
    cache = ShardCache(Path(str(config.storage)) / "cache", 10**9)
    rows, evals = (Rows(folder, cache) for folder in fixed["tokens"])
    batches = EpochBatches(training_samples(rows, config.data)[0], config.data, train)
    trainee = build_trainee(config, Path(config.model.name), place, str(config.storage))
    optimizer = build_optimizer(trainee.attached.trainable.values(), train)
    for step in range(batches.total_steps):
        packs = batches.packs(step)
        work = [micro_batch(rows, packs, some) for some in share(len(packs), place, 2)]
        random_state(train.seed, step, place.rank)
        set_learning_rate(optimizer, learning_rate(step, batches.total_steps, train))
        train_step(trainee, work, place, train, step)
        optimizer.step()
        optimizer.zero_grad()
    packs = eval_packs(eval_samples(evals.columns, evals, config.data)[0], config.data)
    work = [micro_batch(evals, packs, some) for some in share(len(packs), place, 4)]
    tune.report({"eval_loss": eval_loss(trainee, work, place)})


def _tokens(config: RunConfig) -> list[str]:
    folder, root = Path(config.model.name), str(config.storage)
    return [
        make_all(plan_tokens(sources_of(sources), config.data, folder, root)).folder
        for sources in (config.data.train, config.data.eval)
    ]


if __name__ == "__main__":
    main()
