from pathlib import Path

import pytest

from ftray.config.base import apply, override, parse_overrides, read_tree, to_yaml, validated
from ftray.config.run import RunConfig
from ftray.errors import ConfigError

TREE = {"name": "a", "data": {"train": "x.jsonl"}, "train": {"max_steps": 10}}


def mistakes(changes: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as error:
        validated(RunConfig, apply(TREE, changes), "run.yaml")
    return error.value.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trian.epochs": 1}, "trian: unknown key; did you mean 'train'?"),
        (
            {"train.learnin_rate": 1},
            "train.learnin_rate: unknown key; did you mean 'learning_rate'?",
        ),
        ({"adapter.rnk": 8}, "adapter.rnk: unknown key; did you mean 'rank'?"),
        (
            {"checkpoint.often": 1},
            "checkpoint.often: unknown key; expected one of: every_steps, keep",
        ),
        (
            {"adapter.method": "lroa"},
            "adapter: expected 'lora', 'qlora', 'full', found 'lroa'; did you mean 'lora'?",
        ),
        (
            {"model.dtype": "bfloat"},
            "model.dtype: expected 'auto', 'float32' or 'bfloat16', found 'bfloat'; "
            "did you mean 'bfloat16'?",
        ),
        (
            {"train.micro_batch_size": "many"},
            "train.micro_batch_size: expected a whole number or 'auto', found 'many'",
        ),
        ({"train.max_steps": 2.5}, "train.max_steps: expected a whole number, found 2.5"),
        ({"data.max_length": -1}, "data.max_length: expected greater than or equal to 8, found -1"),
        ({"data.train": ["a", 3]}, "data.train.1: expected text or a section of keys, found 3"),
        ({"train.betas": [0.9]}, "train.betas.1: missing, and it has no default"),
        ({"adapter": "lora"}, "adapter: expected a section of keys, found 'lora'"),
        ({"train.betas": [0.9, 0.9, 1]}, "train.betas: expected at most 2 items, found [0.9,"),
        ({"name": "My Run"}, "name: expected a-z, 0-9"),
        ({"name": None}, "name: expected text, found nothing"),
        (
            {"data.packing": True, "data.train": True},
            "data.train: expected text or a section of keys or a list, found true",
        ),
        ({"data": None}, "data.train: missing, and it has no default"),
        ({"name": "{message}"}, "{message}"),
    ],
)
def test_a_mistake_names_its_key_and_the_way_out(changes: dict[str, object], message: str):
    assert message in mistakes(changes)


def test_a_key_that_is_a_number_is_no_key():
    with pytest.raises(ConfigError, match="3: expected text as a key, found 3"):
        validated(RunConfig, {**TREE, 3: 1}, "run.yaml")  # type: ignore[dict-item]  # as YAML has it


def test_all_mistakes_are_told_at_once():
    told = mistakes({"model.nme": "x", "data.max_length": 1, "trane.x": 3}).splitlines()
    assert told[0] == "run.yaml: 3 problems"
    assert len(told) == 4


def test_an_empty_section_means_its_defaults():
    config = validated(RunConfig, {**TREE, "adapter": None, "checkpoint": None}, "run.yaml")
    assert (config.adapter.method, config.checkpoint.keep) == ("lora", 2)


def test_a_change_leaves_the_original_alone():
    changed = apply(TREE, {"data.columns.prompt": "question"})
    assert changed["data"] == {"train": "x.jsonl", "columns": {"prompt": "question"}}
    assert TREE["data"] == {"train": "x.jsonl"}


def test_a_value_cannot_be_entered_like_a_section():
    with pytest.raises(ConfigError, match=r"'name' is a value, not a section"):
        apply(TREE, {"name.first": "x"})


def test_override_values_are_yaml_and_the_last_one_wins():
    changes = parse_overrides(["a.b=1", "a.c=[x, y]", "a.d=null", "a.b=2.5"])
    assert changes == {"a.b": 2.5, "a.c": ["x", "y"], "a.d": None}


@pytest.mark.parametrize("text", ["train.epochs", "=3", "train.=3", "a=[", "a={b: 1, b: 2}"])
def test_what_is_no_override_is_refused(text: str):
    with pytest.raises(ConfigError):
        parse_overrides([text])


def test_a_trial_is_an_override_of_a_whole_run():
    run = validated(RunConfig, TREE, "run.yaml")
    trial = override(run, {"train.learning_rate": 3e-4, "adapter": {"method": "qlora", "rank": 4}})
    assert (trial.train.learning_rate, trial.adapter.method) == (3e-4, "qlora")
    assert override(trial, {}) == trial


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb:\n  c: 1\n  c: 2\n", "line 4: not valid YAML: key given twice: c"),
        (b"a: [1\n", "not valid YAML"),
        (b"- a\n", "expected sections, found a list"),
        (b"", "expected sections, found an empty file"),
        (b"a: \xff\n", "not UTF-8 text"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_tree(path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="No such file") as error:
        read_tree(tmp_path / "run.yaml", "ftray init lora > run.yaml")
    assert error.value.hint == "ftray init lora > run.yaml"


def test_the_resolved_config_reads_back_as_itself(tmp_path: Path):
    run = validated(RunConfig, TREE, "run.yaml")
    path = tmp_path / "resolved.yaml"
    path.write_text(to_yaml(run), encoding="utf-8")
    assert validated(RunConfig, read_tree(path), "resolved.yaml") == run
