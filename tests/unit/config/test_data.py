"""Sources of a mixture: what can be said of each, and what contradicts itself."""

from typing import Any

import pytest

from ftray.config.base import validated
from ftray.config.data import DataConfig, sources_of
from ftray.errors import ConfigError


def data(**changes: Any) -> DataConfig:
    return validated(DataConfig, {"train": "train.jsonl", **changes}, "run.yaml")


def test_a_source_is_a_path_or_a_section():
    mixed = data(train=["a.jsonl", {"hub": "org/chats", "split": "dev", "samples": 100}])
    assert [source.name for source in sources_of(mixed.train)] == ["a.jsonl", "org/chats"]
    alone = data(train={"path": "a.jsonl", "epochs": 2})
    assert [source.epochs for source in sources_of(alone.train)] == [2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"path": "a", "hub": "b"}}, "either path or hub"),
        ({"train": {"weight": 1}}, "either path or hub"),
        ({"train": {"path": "a", "revision": "main"}}, "belong to hub datasets"),
        ({"train": {"path": "a", "weight": 1, "epochs": 2}}, "one of weight, samples and epochs"),
        ({"train": ["a", {"path": "b", "weight": 1}]}, "every source of train a weight, or none"),
        ({"train": {"path": "a", "wieght": 1}}, "did you mean 'weight'"),
        ({"train": {"path": "a", "weight": 0}}, "greater than 0"),
        ({"train": ""}, "expected a path, a source, or a list of them"),
        ({"eval": {"path": "a", "samples": 3}}, "all its rows are measured"),
        ({"eval": "a", "eval_fraction": 0.1}, "eval or eval_fraction, not both"),
        ({"eval_fraction": 1}, "less than 1"),
        ({"holdout": {"share": 0.5}}, "holdout.of=eval needs eval or eval_fraction"),
        ({"keep_shards": False, "duplicates": "exact"}, "set keep_shards: true"),
        ({"limits": {"duplicate": 0.1}}, "did you mean 'duplicates'"),
        ({"limits": {"overlap": 2}}, "less than or equal to 1"),
        ({"overflow": "cut"}, "'truncate', 'split', 'drop' or 'error'"),
        (
            {"train": {"path": "a", "format": "text", "columns": {"prompt": "q"}}},
            "format 'text' knows text; found prompt",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        data(**changes)


def test_columns_of_any_format_may_be_named_where_the_format_is_told_by_them():
    assert data(columns={"prompt": "q", "completion": "a"}).format == "auto"
