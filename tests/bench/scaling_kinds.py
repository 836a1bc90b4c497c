"""What scaling.py trains: kinds of runs, shapes of models, rows that fill their packs."""

import json
import random
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ftray.config.base import validated
from ftray.config.run import RunConfig

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "1.5B": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "8B": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "70B": {
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}


@dataclass(frozen=True)
class Kind:
    """One way to train one shape; `micro` packs of `length` tokens on a worker at a time.

    On fewer than `least` GPUs of 141 GB it does not fit.
    """

    method: Literal["lora", "qlora", "full"]
    strategy: Literal["ddp", "fsdp"]
    shape: str
    micro: int
    length: int
    least: int = 1

    @property
    def name(self) -> str:
        """As the command line and the tables call it."""
        return f"{self.method}-{self.strategy} {self.shape}"

    def config(self, model: Path, data: Path, root: Path, sizes: "Sizes") -> RunConfig:
        """The run on so many workers: one global batch for any number of them."""
        full = {"method": "full"}
        tree = {
            "name": f"{self.method}-{self.strategy}-{self.shape.lower()}-{sizes.workers}".replace(
                ".", "-"
            ),
            "storage": str(root),
            "model": {"name": str(model)},
            "adapter": full if self.method == "full" else {"method": self.method, "rank": 16},
            "data": {"train": str(data), "format": "prompt_completion", "max_length": self.length},
            "train": {
                "max_steps": sizes.steps,
                "learning_rate": 1e-5 if self.method == "full" else 2e-4,
                "global_batch_size": sizes.most * self.micro,
                "micro_batch_size": self.micro,
                "schedule": "constant",
                "compile": on_gpus(),  # short runs too: users' are long
            },
            "scaling": {
                "num_workers": sizes.workers,
                "strategy": self.strategy,
                "gpus_per_worker": 1 if on_gpus() else 0,
            },
            "checkpoint": {"every_steps": sizes.save_every, "keep": 2},
            "tracking": [],
        }
        return validated(RunConfig, tree, "scaling.py")


@dataclass(frozen=True)
class Sizes:
    """How large one run is; `most` workers have one micro-batch each to a step."""

    workers: int
    most: int
    steps: int
    save_every: int


ON_GPUS = (
    Kind("lora", "ddp", "8B", 4, 2048),
    Kind("qlora", "ddp", "8B", 4, 2048),
    Kind("qlora", "fsdp", "8B", 4, 2048),
    Kind("full", "fsdp", "1.5B", 4, 2048),
    Kind("full", "fsdp", "8B", 2, 2048, least=2),
    Kind("lora", "fsdp", "70B", 4, 2048, least=2),
)
ON_CPUS = (
    Kind("lora", "ddp", "tiny", 2, 128),
    Kind("qlora", "fsdp", "tiny", 2, 128),
    Kind("full", "fsdp", "tiny", 2, 128),
)


def on_gpus() -> bool:
    """Whether workers have a GPU each: one GPU alone shows nothing here."""
    return torch.cuda.device_count() > 1


def write_rows(count: int, length: int, file: Path) -> None:
    """Write rows of one pack each, less some characters: words that come again and again."""
    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=7)) for _ in range(50)]
    fill = (length - 64) // 8
    with file.open("w") as out:
        for number in range(count):
            answer = " ".join(draw.choices(words, k=fill))
            out.write(json.dumps({"prompt": f"row {number}", "completion": answer}) + "\n")
