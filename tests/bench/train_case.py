"""What a case of train.py is: its rows, its run, and the figures that come out of steps."""

from pathlib import Path
from statistics import median
from typing import Any

import torch

from ftray.config.base import apply, validated
from ftray.config.run import RunConfig

Figures = dict[str, Any]
RANK, ALPHA, RATE = 16, 32, 2e-4
PEAK = 790e12  # bf16 FLOP/s of a large matrix product, as measured on an H100 and on an H200
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CUDA = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def rates_of(case: Figures, seconds: list[float], tokens: list[int], labels: list[int]) -> Figures:
    rate = median(count / taken for count, taken in zip(tokens, seconds, strict=True))
    numbers = case["matrices"] * (6 if case["method"] == "full" else 4)
    is_gpu = CUDA.type == "cuda"
    return {
        "tokens_per_second": rate,
        "label_tokens_per_second": rate * sum(labels) / sum(tokens),
        "mfu": rate * numbers / PEAK,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if is_gpu else None,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if is_gpu else None,
        "step_seconds": median(seconds),
        "slowest_step_seconds": max(seconds),
    }


def rows_of(case: Figures) -> list[list[int]]:
    """Token ids: rows that are full, or as long as GSM8K's (mean 200, log-normal)."""
    generator = torch.Generator().manual_seed(0)
    length, vocab = case["length"], case["vocab"]
    if case["rows"] == "full":
        sizes = [length] * 64
    elif case["rows"] == "nearly full":  # as the rows of the run through Ray
        sizes = [length - 8] * 64
    else:
        drawn = torch.exp(torch.randn(4096, generator=generator) * 0.45 + 5.2)
        sizes = drawn.clamp(40, 800).int().tolist()
    ids = torch.randint(8, vocab, (sum(sizes),), generator=generator).split(sizes)
    return [row.tolist() for row in ids]


def run_of(case: Figures) -> RunConfig:
    """The run's config; what the case leaves open is decided by the planner."""
    adapter = {"method": "full"} if case["method"] == "full" else {"rank": RANK, "alpha": ALPHA}
    if case["method"] != "full":
        adapter["method"] = "qlora" if case["method"] == "nf4" else "lora"
    if case["method"] == "fp8":
        adapter["base_precision"] = "fp8"
    tree = {
        "name": "bench",
        "model": {"name": case["folder"]},
        "adapter": adapter,
        "data": {"train": "made.jsonl", "max_length": case["length"]},
        "train": {
            "max_steps": 10_000,
            "global_batch_size": case["batch"],
            "learning_rate": RATE if case["method"] != "full" else 1e-5,
            "schedule": "constant",
        },
    }
    return validated(RunConfig, apply(tree, case.get("changes", {})), "bench")


def in_memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def wait() -> None:
    if CUDA.type == "cuda":
        torch.cuda.synchronize()
