"""Loss curves of every fast path beside the plain one: 200 steps of LoRA on a small real model.

    python tests/bench/train_curves.py [--only lora full] [--steps 200] [--model FOLDER] [--out F]

Without a folder a Llama of 8 layers is trained first, from scratch, on this package's source, byte
by byte; adapters, or all weights, then learn its tests. The reference of each group computes in
bf16 with transformers' eager attention and a mask, uncompiled. Gradients of one batch are compared
at the weights that it begins with, and at those that it ends with.
"""

import argparse
import gc
import json
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from machine import describe
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ftray.config.base import apply, validated
from ftray.config.run import RunConfig
from ftray.data.rendering.chat import Tokens
from ftray.data.tokens.memory import MemoryRows
from ftray.model.base import load_tokenizer
from ftray.train.optim import build_optimizer
from ftray.train.parallel import Place
from ftray.train.step import micro_batch, train_step
from ftray.train.trainee import Trainee, build_trainee
from ftray.tune.packed.intake import Intake, Tables

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
PLACE = Place(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
PLAIN: dict[str, Any] = {"train.compile": False, "model.attention": "eager"}
FAST: dict[str, Any] = {"train.compile": True, "train.graphs": False}
CAPTURED: dict[str, Any] = {"train.compile": True, "train.graphs": True}
BATCH, LENGTH = 8, 512
SMALL: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
LORA: dict[str, dict[str, Any]] = {
    "bf16, plain": PLAIN,
    "bf16, fast": FAST,
    "bf16, captured": CAPTURED,
    **{
        f"bf16, fast, {policy}": {**FAST, "train.activation_checkpointing": policy}
        for policy in ("pointwise", "mlp", "layer", "offload")
    },
    "fp8, plain": {**PLAIN, "adapter.base_precision": "fp8"},
    "fp8, fast": {**FAST, "adapter.base_precision": "fp8"},
    "fp8, captured": {**CAPTURED, "adapter.base_precision": "fp8"},
    "nf4, plain": {**PLAIN, "adapter.method": "qlora"},
    "nf4, fast": {**FAST, "adapter.method": "qlora"},
    "nf4, captured": {**CAPTURED, "adapter.method": "qlora"},
    "fp32, plain": {**PLAIN, "model.dtype": "float32"},
}
FULL: dict[str, dict[str, Any]] = {
    name: {**changes, "adapter": {"method": "full"}, "train.learning_rate": 1e-4}
    for name, changes in {
        "all weights, plain": PLAIN,
        "all weights, fast": FAST,
        "all weights, captured": CAPTURED,
        "all weights, fast, layer": {**FAST, "train.activation_checkpointing": "layer"},
        "all weights, fast, 8-bit AdamW": {**FAST, "train.optimizer": "adamw_8bit"},
    }.items()
}
GROUPS = {"lora": LORA, "full": FULL}  # each beside its first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--model", type=Path, help="a folder; else one is trained from scratch")
    parser.add_argument("--out", type=Path, help="where the result goes; else to results/")
    options = parser.parse_args()
    path = options.out or RESULTS / f"train-curves-{datetime.now(UTC):%Y-%m-%d}.json"
    machine = {**describe(PACKAGES), "device": _device()}
    results: dict[str, Any] = {"machine": machine, "steps": options.steps, "paths": {}}
    with tempfile.TemporaryDirectory() as root:
        folder = options.model or trained_from_scratch(Path(root) / "small", options.steps)
        for group in options.only:
            for name, found in _compared(GROUPS[group], folder, root, options.steps):
                results["paths"][name] = {**found, "group": group}
                path.write_text(json.dumps(results, indent=1) + "\n")
    _print(results)


def _compared(
    paths: dict[str, dict[str, Any]], folder: Path, root: str, steps: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What each path learns, and how near its gradients are to the first path's."""
    rows = rows_of(folder, "tests")
    weights: list[dict[str, Tensor]] = []  # as the first path begins, and as it ends
    expected: list[Tensor] = []
    for name, changes in paths.items():
        if PLACE.device.type == "cpu" and _wants_gpu(changes):
            continue
        config = config_of(folder, changes)
        trainee = build_trainee(config, folder, PLACE, root)
        first = _copied(trainee)
        losses = learned(trainee, config, rows, steps)
        weights = weights or [first, _copied(trainee)]
        found = [gradient(trainee, config, rows, at) for at in weights]
        expected = expected or found
        cosines = [
            torch.cosine_similarity(ours, theirs, 0).item()
            for ours, theirs in zip(found, expected, strict=True)
        ]
        yield name, {"cosines": cosines, "losses": losses}
        del trainee
        _emptied()


def _wants_gpu(changes: dict[str, Any]) -> bool:
    is_captured = changes.get("train.graphs") is True
    return is_captured or changes.get("adapter.base_precision") == "fp8"


def _copied(trainee: Trainee) -> dict[str, Tensor]:
    """What is trained, as it is now, in the host's memory."""
    return {name: one.detach().cpu().clone() for name, one in trainee.attached.trainable.items()}


def config_of(folder: Path, changes: dict[str, Any]) -> RunConfig:
    tree = {
        "name": "curves",
        "model": {"name": str(folder), "dtype": "bfloat16"},
        "adapter": {"method": "lora", "rank": 16},
        "data": {"train": "made.jsonl", "max_length": LENGTH},
        "train": {
            "max_steps": 2000,
            "schedule": "constant",
            "global_batch_size": BATCH,
            "learning_rate": 2e-4,
        },
    }
    return validated(RunConfig, apply(tree, changes), "curves")


def trained_from_scratch(folder: Path, steps: int) -> Path:
    """Train all weights of a small Llama, so that what its adapters start from is no noise."""
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import tiny_tokenizer

    tiny_tokenizer().save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(folder)
    whole = {"adapter": {"method": "full"}, "train.learning_rate": 1e-3, "train.compile": False}
    config, rows = config_of(folder, whole), rows_of(folder, "ftray")
    trainee = build_trainee(config, folder, PLACE, str(folder))
    losses = learned(trainee, config, rows, 2 * steps)
    Console().print(f"from scratch: loss {losses[0]:.3f} → {losses[-1]:.3f}")
    trainee.attached.model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def rows_of(folder: Path, room: str) -> MemoryRows:
    """Documents of 30 to 400 tokens, cut from the repository's own texts."""
    tokenizer = load_tokenizer(folder)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for file in sorted((ROOT / room).rglob("*.py")):
        ids, start = tokenizer(file.read_text())["input_ids"], 0
        while start < len(ids) - 30:
            length = int(torch.randint(30, 400, (), generator=generator))
            piece = ids[start : start + length]
            rows.append(Tokens(piece, bytes([0, *[1] * (len(piece) - 1)])))
            start += length
    return MemoryRows(rows)


def learned(trainee: Trainee, config: RunConfig, rows: MemoryRows, steps: int) -> list[float]:
    optimizer = build_optimizer(trainee.attached.trainable.values(), config.train)
    intake, losses = Intake(Tables(rows, None), config), []
    for step in range(steps):
        work = [micro_batch(rows, intake.packs(step), list(range(BATCH)))]
        losses.append(train_step(trainee, work, PLACE, config.train, step).loss)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def gradient(
    trainee: Trainee, config: RunConfig, rows: MemoryRows, at: dict[str, Tensor]
) -> Tensor:
    """The gradients of one batch at some weights, laid out flat. [numbers]"""
    named = trainee.attached.trainable
    with torch.no_grad():
        for name, weight in at.items():
            named[name].copy_(weight)
    packs = Intake(Tables(rows, None), config).packs(0)
    train_step(trainee, [micro_batch(rows, packs, list(range(BATCH)))], PLACE, config.train, 0)
    flat = torch.cat([named[name].grad.flatten() for name in sorted(named)])
    for parameter in named.values():
        parameter.grad = None
    return flat.double()


def _device() -> str:
    return torch.cuda.get_device_name() if PLACE.device.type == "cuda" else "CPU"


def _emptied() -> None:
    gc.collect()
    if PLACE.device.type == "cuda":
        torch._dynamo.reset()
        torch.cuda.empty_cache()


def _print(results: dict[str, Any]) -> None:
    titles = ("loss, first 10", "last 10", "against the first")
    table = Table("path", *titles, "gradients' cosine at the start", "at the end")
    for group in GROUPS:
        paths = {name: one for name, one in results["paths"].items() if one["group"] == group}
        last_of = {name: sum(one["losses"][-10:]) for name, one in paths.items()}
        for name, one in paths.items():
            table.add_row(
                name,
                f"{sum(one['losses'][:10]) / 10:.4f}",
                f"{last_of[name] / 10:.4f}",
                f"{last_of[name] / next(iter(last_of.values())) - 1:+.3%}",
                *(f"{cosine:.5f}" for cosine in one["cosines"]),
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
