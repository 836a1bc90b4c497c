"""How long a trainer waits for data while its tokens are still being made.

Run by data.py with a file of settings: `ftray train` with max_steps on the first two layers of the
built-in model, whose steps on a CPU are about as short as a large model's on a GPU.
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

LAYERS = 2
STEPS = 40


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    root = Path(settings["root"])
    model = small_model(Path(settings["model"]), root / "model")
    run = root / "run.yaml"
    run.write_text(yaml.safe_dump(_run(model, settings)))
    subprocess.run([sys.executable, "-m", "ftray", "train", str(run)], check=True)
    metrics = root / "runs" / "waits" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [line for line in lines if "data_wait_seconds" in line]
    shards = [path.stat().st_mtime for path in root.glob("tokens/*/shard-*.json")]
    Path(settings["answer"]).write_text(json.dumps(_waits(steps, max(shards))))


def _waits(steps: list[dict[str, Any]], made: float) -> dict[str, Any]:
    """Sum over the steps that ended before the last shard was there; the first one is apart."""
    first, *later = steps
    during = [step for step in later if step["time"] <= made]
    typical = median(step["step_seconds"] for step in later)
    waited = sum(step["data_wait_seconds"] for step in during)
    taken = sum(step["step_seconds"] for step in during)
    return {
        "steps": len(steps),
        "steps_while_made": len(during),
        "first_wait": first["data_wait_seconds"],
        "wait": waited,
        "step": typical,
        "share": waited / taken if during else float("nan"),
        "longest": max((step["data_wait_seconds"] for step in during), default=float("nan")),
        "seconds_left_to_make": made - first["time"],
    }


def small_model(whole: Path, folder: Path) -> Path:
    """Put the first two layers of a model into a folder, with its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(whole, num_hidden_layers=LAYERS)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(whole).save_pretrained(folder)
    return folder


def _run(model: Path, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "waits",
        "storage": settings["root"],
        "model": {"name": str(model)},
        "adapter": {"method": "lora", "rank": 8, "alpha": 16},
        "data": {"train": settings["folder"], "format": "messages", "max_length": 256},
        "train": {
            "learning_rate": 1e-4,
            "max_steps": STEPS,
            "global_batch_size": 2,
            "micro_batch_size": 1,
        },
        "scaling": {"num_workers": 1},
        "checkpoint": {"every_steps": STEPS, "keep": 1},
    }


if __name__ == "__main__":
    main()
