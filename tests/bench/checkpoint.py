"""What a checkpoint costs a step: one run, one table, one JSON file with versions.

    python tests/bench/checkpoint.py [--steps 100]

Two layers of the built-in model are trained whole (the largest state) and by LoRA, without
checkpoints and with one every 10 steps, on a local root and on an S3 server on this machine; each
save waited for, and beside training. README.md here says how to read it.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from typing import Any

import fsspec
import torch
from machine import describe, load
from rich.console import Console
from rich.table import Table
from training import LAYERS, small_model

from ftray import runs, storage
from ftray.config.base import validated
from ftray.config.run import BUILTIN_MODEL, ModelConfig, RunConfig
from ftray.data.batching.samples import Sample
from ftray.data.rendering.chat import Tokens
from ftray.data.tokens.memory import MemoryRows
from ftray.model.folder import fetch
from ftray.runs import Run
from ftray.train.checkpoint import Progress
from ftray.train.optim import build_optimizer
from ftray.train.parallel import Place
from ftray.train.saver import Saver
from ftray.train.step import micro_batch, train_step
from ftray.train.trainee import build_trainee, random_state

RESULTS = Path(__file__).with_name("results")
PLACE = Place(0, 1, torch.device("cpu"))
EVERY, ROWS, LENGTH = 10, 4, 128
ADAPTERS: dict[str, dict[str, Any]] = {"full": {"method": "full"}, "lora": {"rank": 16}}
ENV = {
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100, help="of each of the ten runs")
    parser.add_argument(
        "--model-root",
        default=os.environ.get("FTRAY_TEST_CACHE"),
        help="where the built-in model is unpacked; else it is unpacked for this run",
    )
    options = parser.parse_args()
    os.environ.update(ENV)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # what is started inherits it
    torch.set_num_threads(1)
    results: dict[str, Any] = {"machine": {**describe(), "moto": version("moto")}}
    results |= {"load_before": load(), "steps": options.steps, "every": EVERY, "layers": LAYERS}
    with tempfile.TemporaryDirectory(prefix="ftray-bench-") as folder, _s3_server() as bucket:
        place = Path(folder)
        whole = fetch(ModelConfig(name=BUILTIN_MODEL), options.model_root or str(place / "root"))
        model = small_model(whole, place / "model")
        roots = {"local": str(place / "root"), "S3": f"{bucket}/root"}
        results["runs"] = [
            measured
            for kind in ADAPTERS
            for measured in _compared(Learner(kind, model, folder), roots, options.steps)
        ]
    results["load_after"] = load()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"checkpoint-{datetime.now(UTC):%Y-%m-%d}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    _print(results)


class Learner:
    """Training on one thread, on rows that are made up."""

    def __init__(self, kind: str, model: Path, root: str) -> None:
        self.kind = kind
        tree = {
            "name": "bench",
            "model": {"name": str(model)},
            "adapter": ADAPTERS[kind],
            "data": {"train": "unused.jsonl", "max_length": LENGTH},
            "train": {"max_steps": 1000},
        }
        self.config = validated(RunConfig, tree, "bench")
        self.trainee = build_trainee(self.config, model, PLACE, root)
        self.trainable = self.trainee.attached.trainable
        self.optimizer = build_optimizer(self.trainable.values(), self.config.train)
        rows = [Tokens([9 + i, *range(100, 99 + LENGTH)], bytes([1] * LENGTH)) for i in range(ROWS)]
        packs = [[Sample(key, 0, LENGTH, 0)] for key in range(ROWS)]
        self._work = [micro_batch(MemoryRows(rows), packs, list(range(ROWS)))]

    def step(self, step: int) -> None:
        random_state(0, step, PLACE.rank)
        train_step(self.trainee, self._work, PLACE, self.config.train, step)
        self.optimizer.step()
        self.optimizer.zero_grad()


@dataclass(frozen=True)
class Times:
    """Seconds: each step to the beginning of the next one, and what of it each save took."""

    steps: list[float]
    saves: list[float]


def _compared(learner: Learner, roots: dict[str, str], steps: int) -> Iterator[dict[str, Any]]:
    for step in range(3):
        learner.step(step)  # allocates
    yield {"kind": learner.kind, "root": "none", "how": "", **_figures(_timed(learner, steps))}
    for name, root in roots.items():
        for how in ("waited for", "beside"):
            run = Run(root, f"{learner.kind}-{how.partition(' ')[0]}")
            saver = Saver(run, PLACE, attempt=1, keep=1)
            times = _timed(learner, steps, saver, waits=how == "waited for")
            saver.close()
            size = _size(run)
            storage.delete(run.folder)
            figures = {**_figures(times), "megabytes": size / 1e6}
            yield {"kind": learner.kind, "root": name, "how": how, **figures}


def _timed(
    learner: Learner, steps: int, saver: Saver | None = None, *, waits: bool = False
) -> Times:
    times = Times([], [])
    for step in range(1, steps + 1):
        began = time.perf_counter()
        learner.step(step)
        if saver is not None and step % EVERY == 0:
            learned = time.perf_counter()
            saver.wait()
            progress = Progress(step, {}, is_best=False, micro_batch_size=ROWS)
            saver.save(learner.trainable, learner.optimizer, progress)
            if waits:
                saver.wait()
            times.saves.append(time.perf_counter() - learned)
        times.steps.append(time.perf_counter() - began)
    if saver is not None:
        saver.wait()
    return times


def _figures(times: Times) -> dict[str, float]:
    ordered = sorted(times.steps)
    figures = {
        "p50": median(ordered),
        "p99": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        "longest": ordered[-1],
        "mean": fmean(ordered),
    }
    if times.saves:
        first, *later = times.saves
        figures |= {"first_stall": first, "stall": median(later or [first])}
    return figures


def _size(run: Run) -> int:
    record = runs.checkpoints(run)[0]
    folder = runs.checkpoint_folder(run, record.step, record.attempt)
    return sum(entry.size or 0 for entry in storage.find(folder))


@contextmanager
def _s3_server() -> Iterator[str]:
    """Run an S3 server as a process of its own, with a bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, **quiet)
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    try:
        _await(port)
        fsspec.filesystem("s3", use_listings_cache=False).mkdir("s3://bench")
        yield "s3://bench"
    finally:
        server.terminate()
        server.wait()


def _await(port: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise SystemExit("the S3 server does not start")


def _print(results: dict[str, Any]) -> None:
    console = Console(width=120)
    facts = results["machine"]
    console.print(", ".join(f"{key} {value}" for key, value in facts.items()), style="dim")
    before, after = results["load_before"], results["load_after"]
    console.print(f"load average before {before}, after {after}", style="dim")
    title = f"{results['steps']} steps, a save every {EVERY}; seconds, of a save those that wait"
    heads = ("trained", "root", "saves", "MB", "step p50", "p99", "longest", "mean")
    heads += ("first save", "later ones")
    table = Table(*heads, title=title, title_justify="left")
    numbers = ("p50", "p99", "longest", "mean", "first_stall", "stall")
    for one in results["runs"]:
        size = f"{one['megabytes']:.0f}" if "megabytes" in one else "–"
        cells = [f"{one[name]:.3f}" if name in one else "–" for name in numbers]
        table.add_row(one["kind"], one["root"], one["how"] or "none", size, *cells)
    console.print(table)


if __name__ == "__main__":
    main()
