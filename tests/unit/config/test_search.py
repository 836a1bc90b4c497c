"""The space file: what it may say, and the one clear message for each mistake."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftray.config.base import override
from ftray.config.run import RunConfig
from ftray.config.search import SearchConfig, is_packed, load_search, split_overrides
from ftray.config.space import drawn
from ftray.errors import ConfigError

SHIPPED = Path(__file__).parents[3] / "tune_spaces"
RANKS = "adapter.rank: {choice: [4, 8]}"
RATES = "train.learning_rate: {loguniform: [1.0e-5, 1.0e-3]}"

Load = Callable[..., SearchConfig]


def run_of(changes: dict[str, Any] | None = None) -> RunConfig:
    tree = {
        "name": "tickets",
        "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
        "train": {"max_steps": 30},
    }
    return override(RunConfig.model_validate(tree), changes or {})


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str, run: RunConfig | None = None, *overrides: str) -> SearchConfig:
        (tmp_path / "space.yaml").write_text(text)
        return load_search(tmp_path / "space.yaml", run or run_of(), overrides)

    return load


def space(*lines: str, also: str = "") -> str:
    return "\n".join(["space:", *(f"  {line}" for line in lines), also])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected sections, found an empty file"),
        ("- a", "expected sections, found a list"),
        ("space: {a: [", "line 1: not valid YAML"),
        ("metric: loss", "space: missing"),
        ("space: {}", "space: expected at least 1 item"),
        (space("train.learning_rte: {choice: [1]}"), "did you mean 'train.learning_rate'?"),
        (space("learning_rate: {choice: [1]}"), "did you mean 'train.learning_rate'?"),
        (space("adapter.rank: {chioce: [4]}"), "space.adapter.rank.chioce: unknown key; did you"),
        (space("adapter.rank: 8"), "expected a distribution as in {choice: [4, 8, 16]}, found 8"),
        (space("adapter.rank: [4, 8]"), "expected a distribution as in"),
        (space("adapter.rank: {choice: [4], grid: [8]}"), "exactly one of choice, grid, uniform,"),
        (space("adapter.rank: {choice: [4, 4]}"), "space.adapter.rank.choice: 4 is given twice"),
        (space(RANKS, RANKS), "line 3: not valid YAML: key given twice: adapter.rank"),
        (space("adapter.rank: {choice: [4, many]}"), "expected a whole number, found 'many'"),
        (space("adapter.rank: {uniform: [4, 64]}"), "expected a whole number, found 26.9"),
        (space("adapter.dropout: {uniform: [0, 1.5]}"), "expected less than 1, found 1.5"),
        (space("adapter.alpha: {uniform: [9, 1]}"), "uniform needs a lower and a higher number"),
        (space("adapter.alpha: {uniform: [.nan, 1]}"), "a lower and a higher number, found nan"),
        (space("adapter.alpha: {loguniform: [0, 1]}"), "loguniform needs numbers above 0"),
        (space("adapter.alpha: {uniform: [1]}"), "expected at least 2 items"),
        (space("name: {choice: [a, b]}"), "space.name: is the same for all trials"),
        (space("scaling.num_workers: {choice: [1, 2]}"), "is the same for all trials"),
        (space("data.train: {choice: [a, b]}"), "trials with other rows could not be compared"),
        (space("train.micro_batch_size: {choice: [1, 2]}"), "does not change what a trial learns"),
        (
            space(RANKS, "adapter.rslora: {choice: [true, false], when: {adapter.rnk: 8}}"),
            "adapter.rslora.when: adapter.rnk is not in the space; did you mean 'adapter.rank'?",
        ),
        (
            space("adapter.rslora: {choice: [true, false], when: {adapter.rank: 8}}", RANKS),
            "adapter.rank is not above it in the space",
        ),
        (
            space(RANKS, "adapter.rslora: {choice: [true, false], when: {adapter.rank: 16}}"),
            "when.adapter.rank: 16 is never drawn; expected one of: 4, 8",
        ),
        (
            space(RATES, "adapter.rslora: {choice: [true], when: {train.learning_rate: 1.0e-4}}"),
            "loguniform has no single values: conditions need choice or grid",
        ),
        (
            space(RANKS, "adapter.alpha: {grid: [4, 8], when: {adapter.rank: 4}}"),
            "a grid cannot depend on other keys: use choice",
        ),
        (space("train.warmup_steps: {int: [0, 60]}"), "warmup_steps must be below max_steps (30)"),
        (
            space(
                "train.max_steps: {choice: [10, 100]}",
                "train.warmup_steps: {choice: [5, 50], when: {train.max_steps: [100, 10]}}",
            ),
            "(with train.max_steps=10, train.warmup_steps=50)",
        ),
        (space("adapter.rank: {grid: [4]}", also="searcher: {kind: optuna}"), "draws no grids"),
        (space(RANKS, also="searcher: {kind: optna}"), "did you mean 'optuna'?"),
        (space(RANKS, also="searcher: {kind: bohb}"), "use searcher optuna with scheduler asha"),
        (space(RANKS, also="scheduler: asha"), "scheduler: expected a section of keys"),
        (
            space(RANKS, also="scheduler: {kind: pbt}"),
            "pbt changes the learning rate, which is not",
        ),
        (
            space(RATES, also="scheduler: {kind: pbt}\ntrials: ordinary"),
            "scheduler pbt copies adapter slots: it needs packed trials",
        ),
        (
            space(RATES, "adapter.init_from: {choice: [a, b]}", also="scheduler: {kind: pbt}"),
            "scheduler: pbt copies adapter slots, and space.adapter.init_from",
        ),
        (
            space("adapter.method: {choice: [lora, qlora]}", also="trials: packed"),
            "space.adapter.method: packed trials share one base model",
        ),
        (space(RANKS, also="also: {trained_parameters: min}"), "need searcher.kind=optuna"),
        (space(RANKS, also="metric: accuracy"), "expected 'eval_loss', 'perplexity' or 'loss'"),
        (space(RANKS, also="budget: {second: 9}"), "budget.second: unknown key; did you mean"),
        (space(RANKS, also="publish: {alias: No Good}"), "publish.alias: expected a-z, 0-9"),
    ],
)
def test_each_mistake_is_one_message_that_says_where_and_what(load: Load, text: str, message: str):
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert "space.yaml" in caught.value.message
    assert message in caught.value.message


def test_all_mistakes_of_a_space_are_told_at_once(load: Load):
    with pytest.raises(ConfigError) as caught:
        load(space("adapter.rank: {choice: [0, many]}", "adapter.dropout: {choice: [2]}"))
    told = caught.value.message.splitlines()
    assert told[0].endswith("space.yaml: 3 problems")
    assert [line.split(":")[0].strip() for line in told[1:]] == [
        *["space.adapter.rank"] * 2,
        "space.adapter.dropout",
    ]


@pytest.mark.parametrize(
    ("metric", "has_error"), [("eval_loss", True), ("perplexity", True), ("loss", False)]
)
def test_what_is_measured_on_eval_rows_needs_some(load: Load, metric: str, has_error: bool):
    text, run = space(RANKS, also=f"metric: {metric}"), run_of({"data.eval": None})
    if not has_error:
        assert load(text, run).metric == "loss"
        return
    with pytest.raises(ConfigError, match="needs rows to measure on, and the run has none"):
        load(text, run)


@pytest.mark.parametrize("name", ["lora", "qlora", "full", "smoke"])
def test_the_shipped_spaces_are_sound(name: str):
    method = name if name in ("qlora", "full") else "lora"
    search = load_search(SHIPPED / f"{name}.yaml", run_of({"adapter": {"method": method}}))
    assert search.name == "tickets"
    assert is_packed(search, run_of({"adapter": {"method": method}})) == (name != "full")


def test_numbers_that_yaml_reads_as_text_are_numbers(load: Load):
    found = load("space: {train.learning_rate: {choice: [1e-4, 1e-3]}}")
    assert found.space["train.learning_rate"].options == [1e-4, 1e-3]


def test_the_command_line_replaces_settings_and_whole_distributions(load: Load):
    of_run, of_search = split_overrides(
        ["train.max_steps=9", "search.num_samples=3", "search.space.adapter.rank={choice: [2]}"]
    )
    assert of_run == ["train.max_steps=9"]
    found = load(space(RANKS, RATES), None, *of_search)
    assert found.num_samples == 3
    assert found.space["adapter.rank"].options == [2]
    assert list(found.space) == ["adapter.rank", "train.learning_rate"]


def test_relative_paths_count_from_the_space_file(load: Load, tmp_path: Path):
    found = load(space(RANKS, also="holdout: {path: rows.jsonl}"))
    assert found.holdout is not None
    assert found.holdout.path == str(tmp_path / "rows.jsonl")


def test_a_value_whose_condition_is_not_met_is_left_to_the_run(load: Load):
    found = load(
        space(
            "adapter.rank: {choice: [4, 8, 16]}",
            "adapter.rslora: {choice: [true, false], when: {adapter.rank: [8, 16]}}",
            "adapter.alpha: {choice: [1, 2], when: {adapter.rslora: true}}",
        )
    ).space
    labels = {"adapter.rank": 4, "adapter.rslora": True, "adapter.alpha": 2}
    assert drawn(found, labels) == {"adapter.rank": 4}
    assert drawn(found, labels | {"adapter.rank": 8}) == labels | {"adapter.rank": 8}
    without = labels | {"adapter.rank": 16, "adapter.rslora": False}
    assert drawn(found, without) == {"adapter.rank": 16, "adapter.rslora": False}


def test_lists_are_drawn_by_their_text_and_come_back_as_lists(load: Load):
    found = load(space("adapter.target: {choice: [[q_proj, v_proj], all-linear]}")).space
    label = found["adapter.target"].labels[0]
    assert isinstance(label, str)
    assert drawn(found, {"adapter.target": label}) == {"adapter.target": ["q_proj", "v_proj"]}


@pytest.mark.parametrize(
    ("changes", "lines", "is_shared"),
    [
        ({}, [RANKS, RATES, "adapter.target: {choice: [[q_proj], all-linear]}"], True),
        ({}, ["data.max_length: {choice: [64, 128]}"], True),
        ({"adapter": {"method": "full"}}, [RATES], False),
        ({"adapter.init_from": "other@1"}, [RANKS], False),
        ({"train.optimizer": "adamw_8bit"}, [RANKS], False),
        ({"scaling.num_workers": 2}, [RANKS], False),
        ({}, ["model.name: {choice: [./a, ./b]}"], False),
        ({}, ["adapter.method: {choice: [lora, qlora]}"], False),
    ],
)
def test_trials_share_a_base_where_they_can(
    load: Load, changes: dict[str, Any], lines: list[str], is_shared: bool
):
    run = run_of(changes)
    assert is_packed(load(space(*lines), run), run) is is_shared


def test_a_search_survives_being_written_as_yaml(load: Load):
    found = load(space(RANKS, RATES, also="scheduler: {kind: median}"))
    tree = yaml.safe_load(yaml.safe_dump(found.model_dump(mode="json")))
    assert SearchConfig.model_validate(tree) == found
