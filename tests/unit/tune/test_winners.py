"""The end of a search: who won, on which rows that is checked, and what the registry gets."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ftray import registry
from ftray.config.base import apply, override, validated
from ftray.config.data import sources_of
from ftray.config.run import RunConfig
from ftray.config.search import SearchConfig
from ftray.data.tokens.cache import ShardCache
from ftray.data.tokens.pipeline import make_all, plan_tokens
from ftray.errors import DataError
from ftray.registry import FoundBy
from ftray.runs import Run
from ftray.train import checkpoint
from ftray.train.checkpoint import Progress
from ftray.train.optim import build_optimizer
from ftray.train.parallel import Place
from ftray.train.step import micro_batch, train_step
from ftray.train.trainee import build_trainee
from ftray.tune.award import Award, award
from ftray.tune.holdout import held_out
from ftray.tune.packed.intake import Intake, Tables, Tokens
from ftray.tune.packed.state import read_state
from ftray.tune.packed.trainer import PackedTrainer
from ftray.tune.packed.trial import Capacity, Trial
from ftray.tune.results import SearchResult, TrialResult, TrialState
from ftray.tune.winners import ranked, searched

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

CPU = torch.device("cpu")
DRAWS: dict[str, dict[str, Any]] = {
    "a": {"train.learning_rate": 1e-2, "adapter.rank": 4},
    "b": {"train.learning_rate": 1e-4, "adapter.rank": 8},
    "c": {"train.learning_rate": 3e-2, "adapter.rank": 8},
}
RunOf = Callable[[dict[str, Any]], RunConfig]


@pytest.fixture
def run_of(tiny_folder: Path, tmp_path: Path) -> RunOf:
    """Make a run over 40 training rows and 24 eval rows, with changes by dotted key."""
    for name, count in (("train", 40), ("eval", 24), ("later", 7)):
        rows = [{"prompt": f"{name} {n}?", "completion": f"it is {n * n}"} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    def make(changes: dict[str, Any]) -> RunConfig:
        files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "eval")}
        tree = {
            "name": "tickets",
            "model": {"name": str(tiny_folder)},
            "data": {**files, "max_length": 64},
            "train": {"max_steps": 4, "global_batch_size": 2},
            "storage": str(tmp_path / "root"),
        }
        return validated(RunConfig, apply(tree, changes), "test")

    return make


def search_of(**changes: Any) -> SearchConfig:
    space = {
        "train.learning_rate": {"loguniform": [1e-4, 1e-1]},
        "adapter.rank": {"choice": [4, 8]},
    }
    return SearchConfig.model_validate({"name": "ranks", "space": space, **changes})


def tokens_of(config: RunConfig) -> Tokens:
    root, folder = str(config.storage), Path(config.model.name)
    train, evals = (
        make_all(plan_tokens(sources_of(sources), config.data, folder, root)).folder
        for sources in (config.data.train, config.data.eval)
    )
    return Tokens(train, evals, ShardCache(Path(root) / "cache", 10**9))


def trial_of(name: str, metric: float | None, state: TrialState = "finished") -> TrialResult:
    return TrialResult(
        id=name,
        values=DRAWS.get(name, {}),
        state=state,
        steps=3,
        tokens=100,
        seconds=1.0,
        metric=metric,
        curve=[] if metric is None else [(3, metric)],
        error="",
        state_folder="",
    )


def result_of(config: RunConfig, search: SearchConfig, trials: list[TrialResult]) -> SearchResult:
    return SearchResult(
        name="ranks",
        metric=search.metric,
        mode=search.mode,
        folder=f"{config.storage}/searches/ranks",
        config=config,
        search=search,
        trials=trials,
        seconds=1.0,
        host_seconds=1.0,
        hosts=1,
        gpus_per_host=0.0,
        saved_against_solo_seconds=None,
    )


def trained(config: RunConfig, search: SearchConfig) -> tuple[SearchResult, PackedTrainer]:
    """Train the draws for three steps on one base, and save each."""
    base = searched(config, search)
    host = PackedTrainer(base, Path(config.model.name), tokens_of(base), CPU, Capacity(4, 512))
    result = result_of(base, search, [])
    for name, draw in DRAWS.items():
        host.attach(Trial(name, override(base, draw)))
    for _ in range(3):
        host.step(list(DRAWS))
    for name, line in host.evaluate(list(DRAWS)).items():
        folder = f"{result.folder}/{name}"
        host.save(name, folder)
        assert isinstance(line, dict)
        metric = line["eval_loss"]
        assert isinstance(metric, float)
        result.trials.append(replace(trial_of(name, metric), state_folder=folder))
    return result, host


def test_the_hold_out_is_cut_from_eval_and_leaves_the_training_rows_alone(run_of: RunOf):
    config = searched(run_of({}), search_of())
    assert config.data.holdout is not None
    assert (config.data.holdout.of, config.data.holdout.share) == ("eval", 0.5)
    before, after = (Tables.of(tokens_of(one)).samples(one.data) for one in (run_of({}), config))
    assert list(before.key) == list(after.key)


def test_without_eval_rows_the_hold_out_is_cut_from_train(run_of: RunOf):
    run = run_of({"data.eval": None})
    config = searched(run, search_of(metric="loss", holdout={"share": 0.2}))
    assert config.data.holdout is not None
    assert (config.data.holdout.of, config.data.holdout.share) == ("train", 0.2)


def test_a_run_whose_search_wants_no_part_of_its_rows_stays_as_it_is(run_of: RunOf, tmp_path: Path):
    for holdout in (None, {"path": str(tmp_path / "later.jsonl")}):
        assert searched(run_of({}), search_of(holdout=holdout)) == run_of({})
    own = run_of({"data.holdout": {"share": 0.1}})
    assert searched(own, search_of()) == own


@pytest.mark.parametrize(
    ("holdout", "words"),
    [
        ({"share": 0.25}, "25% of the eval rows, 8 rows"),
        ({"of": "train", "share": 0.25}, "25% of the training rows, 8 rows"),
    ],
)
def test_a_hold_out_says_what_it_is(run_of: RunOf, holdout: dict[str, Any], words: str):
    search = search_of(holdout=holdout)
    found = held_out(searched(run_of({}), search), search)
    assert found is not None
    assert found.words == words


def test_a_hold_out_may_be_a_file_of_its_own(run_of: RunOf, tmp_path: Path):
    path = str(tmp_path / "later.jsonl")
    found = held_out(run_of({"data.eval": None}), search_of(holdout={"path": path}))
    assert found is not None
    assert found.words == f"{path}, 7 rows"
    assert held_out(run_of({}), search_of(holdout=None)) is None


def test_a_hold_out_without_rows_is_told_before_the_search(run_of: RunOf):
    search = search_of(holdout={"share": 1e-9})
    with pytest.raises(DataError, match=r"the search's holdout: .* of 24 rows holds none out"):
        held_out(searched(run_of({}), search), search)


def test_trials_are_ranked_by_the_metric_and_failed_ones_are_not(run_of: RunOf):
    trials = [
        trial_of("a", 2.0),
        trial_of("b", 1.0, "stopped"),
        trial_of("c", 0.5, "failed"),
        trial_of("d", None, "pending"),
        trial_of("e", float("nan"), "running"),
    ]
    least = result_of(run_of({}), search_of(), trials)
    assert [trial.id for trial in ranked(least)] == ["b", "a"]
    most = result_of(run_of({}), search_of(mode="max"), trials)
    assert [trial.id for trial in ranked(most)] == ["a", "b"]


def test_each_trial_is_measured_on_the_hold_out_as_its_host_would(run_of: RunOf, tmp_path: Path):
    """With the eval set itself as hold-out both numbers are the same."""
    search = search_of(holdout={"path": str(tmp_path / "eval.jsonl")}, publish={"best": 0})
    result, _ = trained(run_of({}), search)
    winners = award(Award(result, ranked(result), held_out(result.config, search), None))
    assert [one.ref for one in winners] == [None] * 3
    assert [one.step for one in winners] == [3] * 3
    for one in winners:
        assert one.held_out == pytest.approx(one.metric, rel=1e-5)


def test_the_hold_out_gives_another_number_than_the_search(run_of: RunOf):
    result, _ = trained(run_of({}), search_of(publish={"best": 0}, metric="perplexity"))
    chosen, holdout = ranked(result)[:1], held_out(result.config, result.search)
    [winner] = award(Award(result, chosen, holdout, None))
    assert winner.held_out is not None
    assert winner.held_out != pytest.approx(winner.metric, rel=1e-3)
    assert winner.held_out > 1.0  # a perplexity, as the search's metric


def test_the_best_trials_are_published_with_their_search_record(run_of: RunOf):
    result, _ = trained(run_of({}), search_of(publish={"best": 2}))
    chosen = ranked(result)
    wanted = Award(result, chosen, held_out(result.config, result.search), None)
    winners = award(wanted)
    assert [one.ref for one in winners] == ["tickets@2", "tickets@1", None]
    root = str(result.config.storage)
    record = registry.resolve(root, "tickets")  # the name alone means the best
    assert wanted.holdout is not None
    assert record.search == FoundBy(
        search="ranks",
        trial=winners[0].trial,
        place=1,
        trials=3,
        values=DRAWS[chosen[0].id],
        metric="eval_loss",
        value=winners[0].metric,
        holdout=wanted.holdout.words,
    )
    assert record.metrics["best_eval_loss"] == chosen[0].metric
    assert record.metrics["held_out_loss"] == winners[0].held_out
    assert record.rank == DRAWS[chosen[0].id]["adapter.rank"]
    published = load_file(Path(registry.adapter_folder(root, record)) / "adapter_model.safetensors")
    saved = read_state(chosen[0].state_folder).adapter
    assert all(torch.equal(values, saved[name]) for name, values in published.items())


def test_doing_it_again_publishes_nothing_twice(run_of: RunOf):
    result, _ = trained(run_of({}), search_of(holdout=None, publish={"best": 1, "name": "helper"}))
    wanted = Award(result, ranked(result)[:1], None, None)
    first = award(wanted)
    assert award(wanted) == first
    assert [record.ref for record in registry.list_adapters(str(result.config.storage))] == [
        "helper@1"
    ]
    assert first[0].held_out is None


def test_an_ordinary_trial_is_loaded_from_its_checkpoint(run_of: RunOf):
    search = search_of(trials="ordinary", publish={"best": 1})
    config = searched(run_of({}), search)
    trial = trial_of("a", 1.0)
    own = override(config, {**trial.values, "name": "ranks-a"})
    folder, weights = _checkpointed(own)
    result = result_of(config, search, [replace(trial, state_folder=folder)])
    [winner] = award(Award(result, ranked(result), held_out(config, search), None))
    assert (winner.step, winner.ref) == (1, "tickets@1")
    record = registry.resolve(str(config.storage), "tickets")
    published = load_file(
        Path(registry.adapter_folder(str(config.storage), record)) / "adapter_model.safetensors"
    )
    name = "model.layers.0.mlp.up_proj"
    assert torch.equal(
        published[f"base_model.model.{name}.lora_B.weight"], weights[f"{name}.lora_B"][0]
    )


def _checkpointed(config: RunConfig) -> tuple[str, dict[str, torch.Tensor]]:
    """Take a step as a run, and save it; returns the checkpoint's folder, and the weights."""
    place = Place(0, 1, CPU)
    tables = Tables.of(tokens_of(config))
    trainee = build_trainee(config, Path(config.model.name), place, str(config.storage))
    trainable = trainee.attached.trainable
    optimizer = build_optimizer(trainable.values(), config.train)
    packs = Intake(tables, config).packs(0)
    train_step(trainee, [micro_batch(tables.train, packs, [0, 1])], place, config.train, 0)
    optimizer.step()
    progress = Progress(1, {}, is_best=True, micro_batch_size=2)
    folder = checkpoint.save(
        Run(str(config.storage), config.name), trainable, optimizer, progress, place, 1
    )
    return folder, {name: values.detach().clone() for name, values in trainable.items()}
