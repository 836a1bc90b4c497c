"""The best trial as a run file."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ftray.config.base import override
from ftray.config.run import RunConfig, load_run
from ftray.tune.report.best import best_yaml, sparse
from ftray.tune.results import SearchResult
from ftray.tune.winners import ranked

Searched = Callable[..., SearchResult]


def test_the_best_is_read_back_as_its_trials_config(searched: Searched, tmp_path: Path):
    result = searched(16)
    path = tmp_path / "best.yaml"
    path.write_text(best_yaml(result) or "")
    values = {**ranked(result)[0].values, "name": "support-bot-best"}
    assert load_run(path) == override(result.config, values)


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter.method": "qlora"},
        {"adapter": {"method": "full"}},
        {"adapter": {"method": "qlora", "double_quantization": False, "rank": 8}},
        {"data.holdout": {"of": "eval", "share": 0.5}},
        {"data.holdout": {"share": 0.3}, "train.betas": [0.9, 0.95]},
        {"data.train": [{"path": "/data/a.jsonl", "weight": 2}, {"path": "/data/b", "weight": 1}]},
        {"scaling.num_workers": {"min": 1, "max": 4}, "storage": "s3://bucket/ftray"},
    ],
)
def test_what_is_left_out_are_defaults_and_nothing_else(run: RunConfig, changes: dict[str, object]):
    config = override(run, changes)
    text = yaml.safe_dump(sparse(config))
    assert RunConfig.model_validate(yaml.safe_load(text)) == config


def test_defaults_are_left_out(run: RunConfig):
    assert sparse(run) == {
        "name": "support-bot",
        "adapter": {"method": "lora"},
        "data": {"train": "/data/train.jsonl", "eval": "/data/eval.jsonl", "max_length": 512},
        "train": {"max_steps": 81},
    }


def test_a_section_that_is_no_default_is_written_out(run: RunConfig):
    config = override(run, {"data.holdout": {"of": "eval"}})
    assert sparse(config)["data"]["holdout"] == {"of": "eval", "share": 0.5}


def test_its_first_lines_say_how_to_run_it_and_what_it_is(searched: Searched):
    result = searched(8)
    best = ranked(result)[0]
    lines = (best_yaml(result) or "").splitlines()
    assert lines[0] == "# ftray train best.yaml"
    assert lines[1] == (
        f"# The best of 8 trials of search 'bot-ranks': trial {best.id},"
        f" eval_loss {best.metric:.4f}."
    )


def test_a_long_name_leaves_room_for_its_ending(searched: Searched):
    result = searched(8)
    named = replace(result, config=override(result.config, {"name": "n" * 63}))
    assert yaml.safe_load(best_yaml(named) or "")["name"] == "n" * 58 + "-best"


def test_a_rate_that_changed_on_the_way_is_not_promised_to_be_reproduced(searched: Searched):
    assert "changed its learning rate" in (
        best_yaml(searched(8, {"scheduler": {"kind": "pbt"}})) or ""
    )


def test_a_best_trial_that_was_stopped_says_so(searched: Searched):
    result = searched(8)
    stopped = [replace(trial, state="stopped", steps=27) for trial in result.trials]
    assert "was stopped after 27 steps" in (best_yaml(replace(result, trials=stopped)) or "")


def test_without_a_result_there_is_no_best(searched: Searched):
    result = searched(2)
    failed = [replace(trial, state="failed") for trial in result.trials]
    assert best_yaml(replace(result, trials=failed)) is None
