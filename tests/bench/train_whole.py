"""Sides of train.py that train by themselves: TRL, and `ftray train` through Ray."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from train_case import (
    ALPHA,
    RANK,
    RATE,
    TARGETS,
    Figures,
    in_memory,
    rates_of,
    rows_of,
    run_of,
    wait,
)


class Whole:
    """A side that trains by itself, and is told afterwards how long its steps took."""

    def figures(self, case: Figures) -> Figures:
        raise NotImplementedError


class Trl(Whole):
    """TRL's SFTTrainer with PEFT, as its documentation has it, on rows that are tokens already."""

    def __init__(self, case: Figures) -> None:
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import TrainerCallback
        from trl import SFTConfig, SFTTrainer

        times: list[float] = []

        class Clock(TrainerCallback):  # type: ignore[misc]  # its base is untyped
            def on_step_end(self, *_: Any, **__: Any) -> None:
                wait()
                times.append(time.perf_counter())

        steps, batch, full = case["warm"] + case["steps"], case["batch"], case["method"] == "full"
        rows = rows_of(case)
        rows = [rows[number % len(rows)] for number in range(steps * batch)]
        settings = SFTConfig(
            output_dir=tempfile.mkdtemp(),
            max_steps=steps,
            per_device_train_batch_size=case["micro"],
            gradient_accumulation_steps=batch // case["micro"],
            gradient_checkpointing=case["recompute"],
            learning_rate=1e-5 if full else RATE,
            lr_scheduler_type="constant",
            max_length=case["length"],
            bf16=True,
            model_init_kwargs={"dtype": "float32" if full else "bfloat16"},
            optim="adamw_torch_fused",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
        )
        adapter = LoraConfig(
            task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=TARGETS
        )
        self._trainer = SFTTrainer(
            model=case["folder"],
            args=settings,
            train_dataset=Dataset.from_dict({"input_ids": rows}),
            peft_config=None if full else adapter,
            callbacks=[Clock()],
        )
        self._times, self._sizes = times, [len(row) for row in rows]

    def figures(self, case: Figures) -> Figures:
        began = time.perf_counter()
        done = self._trainer.train()
        times, warm, batch = self._times, case["warm"], case["batch"]
        seconds = [after - before for before, after in pairwise(times)][warm - 1 :]
        tokens = [sum(self._sizes[:batch])] * len(seconds)
        return {
            "load_seconds": None,
            "warm_up_seconds": times[warm - 1] - began,
            "losses": [done.training_loss],
            **rates_of(case, seconds, tokens, [count - batch for count in tokens]),
        }


class ThroughRay(Whole):
    """`ftray train` itself: Ray, its workers, token shards; figures out of metrics.jsonl."""

    def __init__(self, case: Figures) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="ftray-bench-", dir=in_memory()))
        letters = "abcdefghijklmnopqrstuvwxyz "
        generator = torch.Generator().manual_seed(0)
        with (self._root / "train.jsonl").open("w") as file:
            for _ in range(256):
                drawn = torch.randint(27, (case["length"] - 8,), generator=generator).tolist()
                text = "".join(letters[letter] for letter in drawn)
                file.write(json.dumps({"text": text}) + "\n")
        tree = run_of(case).model_dump(mode="json")
        steps = case["warm"] + case["steps"]
        tree["data"] |= {"train": "train.jsonl", "format": "text"}
        tree["train"] |= {"max_steps": steps}
        tree |= {"storage": str(self._root), "tracking": []}
        tree["checkpoint"] |= {"every_steps": steps}
        (self._root / "run.yaml").write_text(json.dumps(tree))

    def _trained(self, metrics: Path, steps: int) -> None:
        """Wait for the last step; what comes after it, publishing, is not measured."""
        command = [sys.executable, "-m", "ftray", "train", str(self._root / "run.yaml")]
        with subprocess.Popen(command, stdout=sys.stderr) as process:
            while process.poll() is None:
                if metrics.exists() and len(metrics.read_text().splitlines()) >= steps:
                    process.terminate()
                    try:
                        process.wait(20)
                    except subprocess.TimeoutExpired:
                        process.kill()
                time.sleep(0.5)

    def figures(self, case: Figures) -> Figures:
        began, run = time.time(), self._root / "runs" / "bench"
        self._trained(run / "metrics.jsonl", case["warm"] + case["steps"])
        log = run / "train.log"
        sys.stderr.write(log.read_text() if log.exists() else "no log\n")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        first, warm = lines[0], case["warm"]
        steps = [line for line in lines if "loss" in line][warm:]
        started = first["time"] - first["step_seconds"]
        shards = [path.stat().st_mtime for path in self._root.glob("tokens/*/shard-*.json")]
        logged = log.read_text().splitlines()
        chosen = next((line for line in logged if "GiB estimated" in line), None)
        figures = rates_of(
            case,
            [step["step_seconds"] for step in steps],
            [step["tokens"] for step in steps],
            [step["label_tokens"] for step in steps],
        )
        shutil.rmtree(self._root)
        waited = sum(step["data_wait_seconds"] for step in steps)
        return {
            **figures,
            "memory": chosen,
            "peak_gib": None,
            "data_wait": waited / sum(step["step_seconds"] for step in steps),
            "warm_up_seconds": sum(line["step_seconds"] for line in lines[:warm]),
            "start_seconds": {
                "command to first token shard": min(shards) - began,
                "to first step": started - began,
                "first step": first["step_seconds"],
                "second step": lines[1]["step_seconds"],
            },
            "losses": [line["loss"] for line in lines if "loss" in line],
        }
