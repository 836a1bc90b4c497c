"""Every method on a real GPU: `pytest -m gpu tests/gpu`, on a machine with a CUDA device."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ftray import commands, runs
from ftray.config.base import override, validated
from ftray.config.run import RunConfig
from ftray.data.batching.samples import Sample
from ftray.data.rendering.chat import Tokens
from ftray.data.tokens.memory import MemoryRows
from ftray.model.nf4 import Nf4Linear
from ftray.train.optim import build_optimizer
from ftray.train.parallel import Place
from ftray.train.step import micro_batch, train_step
from ftray.train.trainee import build_trainee
from ftray.tune.packed.intake import Tables
from ftray.tune.packed.trainer import PackedTrainer
from ftray.tune.packed.trial import Capacity, Trial

# what torch's compiler warns itself of, within itself, stops it when it is raised
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora fp32": {"model": {"dtype": "float32"}},
    "lora with dropout": {"adapter": {"rank": 8, "dropout": 0.1}},
    "lora compiled": {"train": {"compile": True}},
    "lora recomputing": {"train": {"activation_checkpointing": "layer"}},
    "lora over fp8": {"adapter": {"rank": 8, "base_precision": "fp8"}},
    "lora over fp8 compiled": {
        "adapter": {"rank": 8, "base_precision": "fp8"},
        "train": {"compile": True},
    },
    "qlora": {"adapter": {"method": "qlora", "rank": 8}},
    "qlora compiled": {"adapter": {"method": "qlora", "rank": 8}, "train": {"compile": True}},
    "full": {"adapter": {"method": "full"}},
    "full with 8-bit moments": {
        "adapter": {"method": "full"},
        "train": {"optimizer": "adamw_8bit"},
    },
}


def config_of(folder: Path, changes: dict[str, Any]) -> RunConfig:
    tree = {
        "name": "gpu",
        "model": {"name": str(folder), **changes.get("model", {})},
        "adapter": changes.get("adapter", {"method": "lora", "rank": 8}),
        "data": {"train": "unused.jsonl", "max_length": 64},
        "train": {"max_steps": 8, "learning_rate": 5e-3, **changes.get("train", {})},
    }
    return validated(RunConfig, tree, "test")


@pytest.mark.parametrize("kind", KINDS)
def test_each_method_learns_on_the_gpu(kind: str, tiny_folder: Path, tmp_path: Path) -> None:
    config = config_of(tiny_folder, KINDS[kind])
    place = Place(0, 1, torch.device("cuda"))
    trainee = build_trainee(config, tiny_folder, place, str(tmp_path))
    optimizer = build_optimizer(trainee.attached.trainable.values(), config.train)
    trained = bytes([0, *[1] * 29])
    rows = MemoryRows([Tokens([5 + i, 6, 7, 8, 9 + i] * 6, trained) for i in range(4)])
    whole = [Sample(key, 0, len(trained), 0) for key in range(4)]
    work = [micro_batch(rows, [whole[:2], whole[2:]], [0, 1])]
    losses = []
    for step in range(8):
        losses.append(train_step(trainee, work, place, config.train, step).loss)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]


@pytest.fixture
def untied_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "untied"
    shutil.copytree(tiny_folder, folder)
    settings = json.loads((folder / "config.json").read_text())
    config = LlamaConfig(**{**settings, "tie_word_embeddings": False})
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_table_in_the_hosts_memory_changes_no_number(
    method: str, untied_folder: Path, tmp_path: Path
) -> None:
    place, trained = Place(0, 1, torch.device("cuda")), bytes([0, *[1] * 29])
    rows = MemoryRows([Tokens([5 + i, 6, 7, 8, 9 + i] * 6, trained) for i in range(4)])
    whole = [Sample(key, 0, len(trained), 0) for key in range(4)]
    adapter = {"method": method, "rank": 8}

    def learned(objective: str) -> tuple[list[torch.Tensor], int]:
        train = {"objective": objective, "activation_checkpointing": "layer"}
        config = config_of(untied_folder, {"adapter": adapter, "train": train})
        before = torch.cuda.memory_allocated()
        trainee = build_trainee(config, untied_folder, place, str(tmp_path))
        held = torch.cuda.memory_allocated() - before
        work = [micro_batch(rows, [whole[:2], whole[2:]], [0, 1])]
        result = train_step(trainee, work, place, config.train, 0)
        gradients = [one.grad for one in trainee.attached.trainable.values()]
        return [torch.tensor(result.loss), *gradients], held

    plain, held = learned("speed")
    saving, held_less = learned("memory")
    for ours, reference in zip(saving, plain, strict=True):
        assert torch.equal(ours, reference)
    assert held_less < held


@pytest.mark.parametrize("precision", ["same", "fp8"])
def test_packed_trials_learn_on_the_gpu(precision: str, tiny_folder: Path) -> None:
    adapter = {"method": "lora", "rank": 8, "base_precision": precision}
    config = config_of(tiny_folder, {"adapter": adapter, "train": {"compile": True}})
    trained = bytes([0, *[1] * 29])
    rows = MemoryRows([Tokens([5 + i, 6, 7, 8, 9 + i] * 6, trained) for i in range(4)])
    host = PackedTrainer(
        config, tiny_folder, Tables(rows, None), torch.device("cuda"), Capacity(3, 512)
    )
    names = ["a", "b", "c"]
    for rank, name in zip((8, 8, 16), names, strict=True):
        host.attach(Trial(name, override(config, {"adapter.rank": rank})))
    steps = [host.step(names) for _ in range(8)]
    for name in names:
        assert steps[-1][name]["loss"] < 0.8 * steps[0][name]["loss"]


def test_4_bit_weights_agree_on_cpu_and_gpu_but_for_ties() -> None:
    linear = torch.nn.Linear(256, 128)
    on_cpu = Nf4Linear(linear, double_quantization=True).dequantized(torch.float32)
    on_gpu = Nf4Linear(linear.to("cuda"), double_quantization=True).dequantized(torch.float32)
    differ = (on_cpu - on_gpu.cpu()).abs() > 1e-4 * on_cpu.abs().max()
    assert differ.float().mean() < 1e-2


def test_a_run_through_ray_takes_the_gpu_and_reports_mfu(tiny_folder: Path, tmp_path: Path) -> None:
    result = commands.train(run_file(tiny_folder, tmp_path), [f"data.eval={tmp_path}/train.jsonl"])
    metrics = runs.read_metrics(result.run)
    assert result.adapter.ref == "gpu@1"
    assert metrics[0]["mfu"] is not None
    assert result.eval_loss is not None
    assert result.eval_loss < metrics[0]["loss"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_workers_of_one_machine_train_on_a_gpu_each(
    strategy: str, tiny_folder: Path, tmp_path: Path
) -> None:
    two = ["scaling.num_workers=2", f"scaling.strategy={strategy}"]
    run = run_file(tiny_folder, tmp_path)
    result = commands.train(run, [*two, "scaling.step_timeout_seconds=20"])
    losses = [line["loss"] for line in runs.read_metrics(result.run)]
    assert len(losses) == 6
    assert losses[-1] < losses[0]


def run_file(tiny_folder: Path, folder: Path) -> str:
    """A run of six steps over 4 bits, and its rows."""
    lines = [{"prompt": f"say {i}", "completion": f"it is {i}"} for i in range(64)]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "run.yaml").write_text(f"""
name: gpu
model: {{name: {tiny_folder}}}
adapter: {{method: qlora, rank: 8}}
data: {{train: train.jsonl, format: prompt_completion, max_length: 128}}
train: {{max_steps: 6, global_batch_size: 4, learning_rate: 5.0e-3}}
storage: root
""")
    return str(folder / "run.yaml")
