"""From checkpoints to a version in the registry: the best one, verified, and only once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ftray import registry, runs
from ftray.config.base import override
from ftray.errors import RegistryError, TrainError
from ftray.model.adapter import adapter_state
from ftray.runs import Run
from ftray.train import checkpoint
from ftray.train.checkpoint import Progress
from ftray.train.parallel import Place
from ftray.train.publish import publish_foreign, publish_run

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

PLACE = Place(0, 1, torch.device("cpu"))
LORA = {"adapter": {"method": "lora", "rank": 4}}

Learning = Callable[[dict[str, Any]], Any]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path), "tickets")


def train(
    run: Run, made: Any, steps: int, best: int | None = None, attempt: int = 1
) -> list[dict[str, Any]]:
    """Save after each step; return the adapters that were saved."""
    saved = []
    for step in range(1, steps + 1):
        made.step(step)
        progress = Progress(step, {"loss": 1.0}, is_best=step == best, micro_batch_size=1)
        checkpoint.save(run, made.trainable, made.optimizer, progress, PLACE, attempt)
        saved.append(adapter_state(made.trainee.attached.model))
    return saved


@pytest.mark.parametrize(("best", "taken"), [(2, 2), (None, 3)])
def test_the_best_checkpoint_is_published_and_else_the_newest(
    best: int | None, taken: int, learner: Learning, run: Run
) -> None:
    made = learner(LORA)
    saved = train(run, made, 3, best)
    record = publish_run(made.config, run, None)
    assert (record.ref, record.metrics["step"]) == ("tickets@1", taken)
    folder = Path(registry.adapter_folder(run.root, record))
    published = load_file(folder / "adapter_model.safetensors")
    assert all(torch.equal(values, saved[taken - 1][name]) for name, values in published.items())


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_of_a_base_that_was_sharded_the_same_is_published_and_checked_block_by_block(
    method: str, dtype: str, learner: Learning, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    made = learner({"adapter": {"method": method, "rank": 4}, "model.dtype": dtype})
    train(run, made, 1)
    record = publish_run(made.config, run, None)
    assert "block by block" not in caplog.text
    with caplog.at_level("INFO", "ftray"):
        found = publish_run(override(made.config, {"scaling.strategy": "fsdp"}), run, None)
    assert "verified block by block" in caplog.text
    assert found == record  # the same weights, so it is the version that is there already


def test_a_damaged_best_checkpoint_is_not_published(learner: Learning, run: Run) -> None:
    made = learner(LORA)
    train(run, made, 3, best=2)
    (Path(runs.checkpoint_folder(run, 2, 1)) / "__0_0.distcp").write_bytes(b"torn")
    assert publish_run(made.config, run, None).metrics["step"] == 3


def test_the_same_weights_are_published_once(learner: Learning, run: Run) -> None:
    made = learner(LORA)
    train(run, made, 1)
    first = publish_run(made.config, run, None)
    assert publish_run(made.config, run, None) == first
    assert len(registry.versions(run.root, "tickets")) == 1
    train(run, made, 2, attempt=2)
    assert publish_run(made.config, run, None).ref == "tickets@2"


def test_the_exported_config_is_the_same_in_every_process(learner: Learning, run: Run) -> None:
    made = learner(LORA)
    train(run, made, 1)
    folder = Path(registry.adapter_folder(run.root, publish_run(made.config, run, None)))
    targets = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert len(targets) > 1
    assert targets == sorted(targets)  # as a set, PEFT's order changes with the hash seed


def test_full_weights_are_published_as_a_model_folder(learner: Learning, run: Run) -> None:
    made = learner({"adapter": {"method": "full"}})
    train(run, made, 1)
    record = publish_run(made.config, run, None)
    assert (record.kind, record.rank) == ("full", None)
    folder = Path(registry.adapter_folder(run.root, record))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(record.files)
    published = load_file(folder / "model.safetensors")
    weights = made.weights()
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(published[name], weights[name])


def test_a_full_model_computed_in_bf16_is_compared_in_what_it_was_trained_in(
    learner: Learning, run: Run
) -> None:
    made = learner({"adapter": {"method": "full"}, "model.dtype": "bfloat16"})
    train(run, made, 1)
    assert publish_run(made.config, run, None).ref == "tickets@1"


def test_the_runs_own_chat_template_travels_with_the_adapter(learner: Learning, run: Run) -> None:
    made = learner(LORA)
    train(run, made, 1)
    template = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    folder = Path(registry.adapter_folder(run.root, publish_run(made.config, run, template)))
    assert (folder / "chat_template.jinja").read_text() == template


def test_a_run_without_a_sound_checkpoint_has_nothing_to_publish(
    learner: Learning, run: Run
) -> None:
    with pytest.raises(TrainError, match="no sound checkpoint"):
        publish_run(learner(LORA).config, run, None)


def test_an_imported_adapter_names_its_base_folder_from_anywhere(
    learner: Learning, run: Run, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = learner(LORA)
    train(run, made, steps=1)
    record = publish_run(made.config, run, None)
    monkeypatch.chdir(tiny_folder.parent)
    folder = Path(registry.adapter_folder(run.root, record))
    imported = publish_foreign(run.root, "theirs", folder, f"./{tiny_folder.name}")
    assert imported.base.name == str(tiny_folder)


def test_an_impossible_name_is_refused_before_the_base_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="adapter name 'My Bot'"):
        publish_foreign(str(tmp_path), "My Bot", tmp_path, "./gone")


def test_checkpoints_become_versions_before_the_result_and_say_so(learner: Learning, run: Run):
    model = "ft:org/base:shop:bot:ghij1234"
    publish = {"checkpoints": True, "project": "shop", "model": model}
    made = learner({**LORA, "publish": publish})
    saved = train(run, made, 3, best=2)
    result = publish_run(made.config, run, None)
    found = registry.versions(run.root, "tickets")
    told = [(record.checkpoint, record.metrics["step"], record.project) for record in found]
    assert told == [(1, 1, "shop"), (3, 3, "shop"), (None, 2, "shop")]
    assert (result, result.model) == (found[-1], model)
    for record, step in zip(found, (1, 3, 2), strict=True):
        folder = Path(registry.adapter_folder(run.root, record))
        published = load_file(folder / "adapter_model.safetensors")
        assert all(torch.equal(published[name], saved[step - 1][name]) for name in published)
    assert publish_run(made.config, run, None) == result
    assert len(registry.versions(run.root, "tickets")) == 3
