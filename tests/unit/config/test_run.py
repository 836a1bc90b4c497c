from pathlib import Path

import pytest

from ftray.config.data import SourceConfig, sources_of
from ftray.config.run import LoraConfig, RunConfig, load_run
from ftray.errors import ConfigError

RUN = "name: a\ndata: {train: data/x.jsonl}\ntrain: {max_steps: 10}\n"


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "here" / "run.yaml"
    path.parent.mkdir()
    path.write_text(RUN, encoding="utf-8")
    return path


def load(run_file: Path, *overrides: str) -> RunConfig:
    return load_run(run_file, overrides)


def test_paths_count_from_the_file_and_in_overrides_from_the_working_directory(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.chdir(there)
    config = load(run_file, "data.eval=[y.jsonl, ../z/*.jsonl]", "storage=s3://bucket/root")
    assert config.data.train == str(run_file.parent / "data" / "x.jsonl")
    assert config.data.eval == [str(there / "y.jsonl"), str(tmp_path / "z" / "*.jsonl")]
    assert config.storage == "s3://bucket/root"


def test_a_section_given_as_an_override_has_its_paths_counted_too(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    config = load(run_file, "data={train: y.jsonl, chat_template: chat.jinja}")
    assert config.data.train == str(tmp_path / "y.jsonl")
    assert config.data.chat_template == str(tmp_path / "chat.jinja")


@pytest.mark.parametrize(
    ("name", "is_path"), [("org/model", False), ("./model", True), ("../m", True), ("~/m", True)]
)
def test_a_model_is_a_path_when_it_looks_like_one(run_file: Path, name: str, is_path: bool):
    assert (load(run_file, f"model.name={name}").model.name != name) is is_path


@pytest.mark.parametrize("word", ["model", "none"])
def test_the_words_of_chat_template_are_no_paths(run_file: Path, word: str):
    assert load(run_file, f"data.chat_template={word}").data.chat_template == word


def test_an_adapter_is_lora_unless_its_method_says_otherwise(run_file: Path):
    assert load(run_file, "adapter.rank=4").adapter == LoraConfig(rank=4)
    assert load(run_file, "adapter.method=qlora", "adapter.rank=4").adapter.method == "qlora"
    assert load(run_file, "adapter={method: full}").adapter.method == "full"


def test_a_full_run_knows_no_rank(run_file: Path):
    with pytest.raises(ConfigError, match=r"adapter\.rank: unknown key"):
        load(run_file, "adapter={method: full, rank: 4}")


def test_rslora_divides_by_the_root_of_the_rank():
    assert LoraConfig(rank=16, alpha=32).scaling == 2.0
    assert LoraConfig(rank=16, alpha=32, rslora=True).scaling == 8.0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.global_batch_size=6", "scaling.num_workers=4"], "not a multiple .* next: 8"),
        (["scaling.num_workers={min: 4, max: 2}"], "min=4 is above max=2"),
        (["scaling.num_workers={max: 32}"], "less than scaling.num_workers.max=32 × .* no work"),
        (["scaling.num_workers={mx: 2}"], r"scaling\.num_workers\.mx: unknown key; did you mean"),
        (["scaling.num_workers=0"], r"scaling\.num_workers: "),
        (["train.micro_batch_size=5"], "not a multiple .* next: 20"),
        (["train={learning_rate: 1e-4}"], "set epochs, max_steps, or both"),
        (["train.warmup_steps=10"], "warmup_steps must be below max_steps"),
        (["eval.patience=2"], "eval.patience needs data.eval"),
        (["data.train=[]"], "expected a path, a source, or a list of them"),
        (["data.eval=''"], "expected a path, a source, or a list of them"),
        (
            ["data.format=messages", "data.columns={prompt: q}"],
            "format 'messages' knows messages, tools; found prompt",
        ),
        (
            ["adapter={method: full}", "scaling.num_workers=2", "train.optimizer=adamw_8bit"],
            "adamw_8bit cannot hold sharded weights: set scaling.strategy=ddp",
        ),
        (["tracking=[tensorbord]"], "did you mean 'tensorboard'"),
        (
            ["train.activation_checkpointing=true"],
            r"train\.activation_checkpointing: true is called 'layer' now: set layer, or auto",
        ),
        (["train.activation_checkpointing=false"], "false is called 'none' now: set none"),
        (["train.activation_checkpointing=layers"], "did you mean 'layer'"),
    ],
)
def test_what_cannot_be_run_is_refused(run_file: Path, overrides: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        load(run_file, *overrides)


def test_weights_are_sharded_where_all_are_trained_by_several(run_file: Path):
    full, several = "adapter={method: full}", "scaling.num_workers=2"
    assert load(run_file, several).strategy == "ddp"
    assert load(run_file, full).strategy == "ddp"
    assert load(run_file, full, several).strategy == "fsdp"
    assert load(run_file, full, several, "scaling.strategy=ddp").strategy == "ddp"
    assert load(run_file, "scaling.strategy=fsdp").strategy == "fsdp"


def test_exponents_without_a_dot_are_numbers_too(run_file: Path):
    assert load(run_file, "train.learning_rate=1e-4").train.learning_rate == 1e-4


def test_one_path_and_several_read_alike():
    a, b = SourceConfig(path="a"), SourceConfig(path="b")
    assert (sources_of("a"), sources_of(["a", "b"]), sources_of(None)) == ([a], [a, b], [])


def test_a_number_of_workers_is_one_or_a_range(run_file: Path):
    fixed = load(run_file, "scaling.num_workers=4").scaling
    assert (fixed.least_workers, fixed.most_workers) == (4, 4)
    elastic = load(run_file, "scaling.num_workers={max: 5}").scaling  # 16 packs: need not divide
    assert (elastic.least_workers, elastic.most_workers) == (1, 5)
    part = load(run_file, "scaling.num_workers.min=2", "scaling.num_workers.max=3").scaling
    assert (part.least_workers, part.most_workers) == (2, 3)


def test_an_elastic_full_run_is_sharded_as_with_its_most_workers(run_file: Path):
    elastic = "scaling.num_workers={max: 2}"
    assert load(run_file, "adapter={method: full}", elastic).strategy == "fsdp"


def test_an_8_bit_base_is_neither_sharded_nor_computed_with_in_fp32(run_file: Path):
    fp8 = "adapter.base_precision=fp8"
    assert load(run_file, fp8).adapter.method == "lora"
    with pytest.raises(ConfigError, match="fp8 is not sharded: set"):
        load(run_file, fp8, "scaling.strategy=fsdp")
    with pytest.raises(ConfigError, match="fp8 computes in bfloat16"):
        load(run_file, fp8, "model.dtype=float32")
    with pytest.raises(ConfigError, match="expected 'auto' or 'nf4', found 'fp8'"):
        load(run_file, fp8, "adapter.method=qlora")
