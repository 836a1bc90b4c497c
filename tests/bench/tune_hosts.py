"""One search on more and more GPUs, a host of packed trials on each: trials an hour.

    python tests/bench/tune_hosts.py [--hosts 1,2] [--steps 60] [--quick] [--out FILE]

`ftray tune` on random weights, from its start to its end. README.md here says how to read it.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isclose
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import yaml
from machine import describe, load
from rich.console import Console
from rich.table import Table
from scaling import ENV, PACKAGES
from scaling_kinds import on_gpus, write_rows
from scaling_models import write_model
from watch import run_command

RESULTS = Path(__file__).with_name("results")
SPACE: dict[str, list[Any]] = {
    "train.learning_rate": [5e-5, 7e-5, 1e-4, 1.4e-4, 2e-4, 2.8e-4, 4e-4, 5.6e-4],
    "adapter.rank": [8, 16],
}
TRIALS = 16
SAME = 2e-2  # relative: of a trial's last loss on one host and on several, in bf16
Figures = dict[str, Any]
_REPORT = re.compile(r"^(\d+):(\d+):(\d+) (\S+) (?:running|finished), step (\d+)", re.MULTILINE)


def main() -> None:
    options = _options()
    os.environ.update(ENV)
    results: Figures = {
        "machine": {**describe(PACKAGES), "device": _device()},
        "load_before": load(),
        "trials": TRIALS,
        "steps": options.steps,
        "shape": options.shape,
        "tokens": options.length,
        "searches": [],
    }
    name = f"tune-hosts-{datetime.now(UTC):%Y-%m-%d}.json"
    path = options.out or RESULTS / name
    path.parent.mkdir(exist_ok=True, parents=True)
    memory = Path("/dev/shm")
    within = str(memory) if memory.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="ftray-bench-", dir=within) as made:
        model = (options.models or Path(made)) / f"model-{options.shape.lower()}"
        bench = Bench(Path(made), model, options)
        if options.add:
            results["searches"] = json.loads(path.read_text())["searches"]
        for hosts in options.hosts:
            results["searches"].append(bench.search(hosts))
            path.write_text(json.dumps(results, indent=1) + "\n")
    _check_same(results["searches"])
    results["load_after"] = load()
    path.write_text(json.dumps(results, indent=1) + "\n")
    _print(results)


@dataclass
class Bench:
    """The temporary folder, the model's, and what each trial trains: a pack a step."""

    folder: Path
    model: Path
    options: argparse.Namespace

    def search(self, hosts: int) -> Figures:
        """Run the whole search on so many hosts; what it took, and what its trials came to."""
        folder = self.folder / f"on-{hosts}"
        folder.mkdir()
        model, rows = self.model, self.folder / "rows.jsonl"
        if not (model / "tokenizer_config.json").exists():  # written last
            # in a process of its own, which takes what it has on a GPU with it
            made = (self.options.shape, model)
            writer = get_context("spawn").Process(target=write_model, args=made)
            writer.start()
            writer.join()
        write_rows(64, self.options.length, rows)
        run, space = folder / "run.yaml", folder / "space.yaml"
        run.write_text(yaml.safe_dump(self._run(model, rows)))
        space.write_text(yaml.safe_dump(self._search(hosts)))
        command = [sys.executable, "-m", "ftray", "tune", str(run), str(space)]
        watched = run_command(command, folder)
        place = self.folder / "root" / "searches" / f"on-{hosts}"
        rows_of = json.loads((place / "report" / "report.json").read_text())["rows"]
        told = json.loads((place / "hosts.json").read_text())
        searching = max(_spent(host) for host in told["hosts"])
        second_half = _second_half((folder / "log.txt").read_text(), self.options.steps)
        return {
            "hosts": hosts,
            "seconds": watched.seconds,
            "searching_seconds": searching,
            "trials_per_hour": 3600 * TRIALS / watched.seconds,
            "searching_trials_per_hour": 3600 * TRIALS / searching,
            "second_half_seconds": second_half,
            "steady_trials_per_hour": 3600 * TRIALS / (2 * second_half),
            "of_hosts": told["hosts"],
            "loaded": told["loaded"],
            "losses": sorted(
                [json.dumps(row["values"], sort_keys=True), row["metric"]] for row in rows_of
            ),
        }

    def _run(self, model: Path, rows: Path) -> Figures:
        return {
            "name": "bench",
            "storage": str(self.folder / "root"),
            "model": {"name": str(model)},
            "adapter": {"method": "lora", "alpha": 32},
            "data": {
                "train": str(rows),
                "format": "prompt_completion",
                "max_length": self.options.length,
            },
            "train": {
                "max_steps": self.options.steps,
                "global_batch_size": 1,
                "micro_batch_size": 1,
                "schedule": "constant",
            },
            "tracking": [],
        }

    def _search(self, hosts: int) -> Figures:
        return {
            "name": f"on-{hosts}",
            "metric": "loss",
            "space": {key: {"grid": some} for key, some in SPACE.items()},
            "num_samples": 1,
            "every_steps": self.options.steps // 2,
            "scheduler": {"kind": "none"},
            "trials": "packed",
            "hosts": {"count": hosts},
            "holdout": None,
            "publish": {"best": 0},
        }


def _spent(host: Figures) -> float:
    """From a host's first trial to its last one's end."""
    return float(host["stepping"] + host["measuring"] + host["saving"] + host["between"])


def _second_half(log: str, steps: int) -> float:
    """Seconds from trials' first reports to their last, a mean over all: nothing is compiled then.

    The log has whole seconds, at which reports come one after the other.
    """
    said: dict[str, dict[int, float]] = defaultdict(dict)
    for hours, minutes, seconds, trial, step in _REPORT.findall(log):
        said[trial][int(step)] = 3600 * int(hours) + 60 * int(minutes) + int(seconds)
    spans = [times[steps] - times[steps // 2] for times in said.values()]
    return mean(span % 86400 for span in spans)


def _check_same(searches: list[Figures]) -> None:
    first, *others = searches
    for other in others:
        for (values, one), (_, two) in zip(first["losses"], other["losses"], strict=True):
            if not isclose(one, two, rel_tol=SAME):
                raise SystemExit(f"trial {values}: {one} on {first['hosts']}, {two} on more")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", type=_numbers, default=[1, 2], help="as 1,2,4")
    parser.add_argument("--shape", default="1.5B", help="a model of scaling_kinds.py")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a trial's step")
    parser.add_argument("--steps", type=int, default=60, help="of each trial")
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run at all?")
    parser.add_argument("--models", type=Path, help="where models are kept; else deleted")
    parser.add_argument("--add", action="store_true", help="to what the result has already")
    parser.add_argument("--out", type=Path, help="where the result goes; else to results/")
    options = parser.parse_args()
    if options.quick:
        options.shape, options.length, options.steps = "tiny", 128, 4
    return options


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _device() -> str:
    if not on_gpus():
        return "CPU"
    return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"


def _print(results: Figures) -> None:
    console = Console(width=120)
    console.print(", ".join(f"{k} {v}" for k, v in results["machine"].items()), style="dim")
    title = f"{TRIALS} trials of {results['steps']} steps of {results['tokens']} tokens"
    of_time = ("the command, s", "its trials, s", "their second half, s")
    heads = (*(head for one in of_time for head in (one, "trials/hour")), "between steps")
    table = Table("hosts", *heads, title=f"{title}, {results['shape']} shape")
    for one in results["searches"]:
        between = max(host["between"] / host["stepping"] for host in one["of_hosts"])
        table.add_row(
            str(one["hosts"]),
            f"{one['seconds']:.1f}",
            f"{one['trials_per_hour']:,.0f}",
            f"{one['searching_seconds']:.1f}",
            f"{one['searching_trials_per_hour']:,.0f}",
            f"{one['second_half_seconds']:.1f}",
            f"{one['steady_trials_per_hour']:,.0f}",
            f"{between:.1%}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
