"""Where the time of a LoRA step on several GPUs goes: the bare loop, alone, side by side, together.

    python tests/bench/scaling_loop.py [--model FOLDER] [--out FILE]

One process a GPU, over NCCL; no Ray. README.md here says how to read it.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from machine import describe
from scaling_kinds import on_gpus
from scaling_models import write_model
from torch.profiler import ProfilerActivity, profile

from ftray.config.base import validated
from ftray.config.run import RunConfig
from ftray.data.rendering.chat import Tokens
from ftray.data.tokens.memory import MemoryRows
from ftray.train.optim import build_optimizer
from ftray.train.parallel import Place
from ftray.train.step import micro_batch, share, train_step
from ftray.train.trainee import build_trainee
from ftray.tune.packed.intake import Intake, Tables

RESULTS = Path(__file__).with_name("results")
PACKAGES = ("torch", "transformers", "numpy")
MICRO, LENGTH = 4, 2048
KINDS = {  # of kernels, by what their names hold
    "collectives": ("nccl",),
    "products": ("gemm", "nvjet", "cutlass", "xmma"),
    "attention": ("flash", "cudnn"),
    "fused": ("triton",),
}
Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help="a folder of an 8B shape; else one is made")
    parser.add_argument("--out", type=Path, help="where the result goes; else to results/")
    options = parser.parse_args()
    path = options.out or RESULTS / f"scaling-loop-{datetime.now(UTC):%Y-%m-%d}.json"
    workers = torch.cuda.device_count() if on_gpus() else 2
    with tempfile.TemporaryDirectory(prefix="ftray-bench-", dir=_in_memory()) as made:
        model = options.model or Path(made) / "model"
        if not model.exists():
            write_model("8B" if on_gpus() else "tiny", model)
        processes.spawn(_work, (workers, model, Path(made)), nprocs=workers)
        found = [json.loads(Path(made, f"{rank}.json").read_text()) for rank in range(workers)]
    machine = {**describe(PACKAGES), "workers": workers}
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps({"machine": machine, "of_workers": found}, indent=1) + "\n")
    _print(found)


def _work(rank: int, workers: int, model: Path, folder: Path) -> None:
    device = torch.device("cuda", rank) if on_gpus() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // (2 * workers)))
    loop, alone = Loop(model, device), Place(0, 1, device)
    for micros in (1, 1, 1, 2):  # kernels are chosen, memory is taken
        loop.step(alone, micros)
    found: Figures = {}
    for turn in range(workers):
        _meet(folder, f"before {turn}", rank, workers)
        if turn == rank:
            found["alone"] = loop.seconds(alone, 1)
    _meet(folder, "alone", rank, workers)
    found["beside"] = loop.seconds(alone, 1)
    found["beside, two micro-batches"] = loop.seconds(alone, 2)
    backend, store = "nccl" if device.type == "cuda" else "gloo", f"file://{folder}/store"
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=workers)
    together = Place(rank, workers, device)
    loop.step(together, 1)
    found["together"] = loop.seconds(together, 1)
    if device.type == "cuda":
        found["milliseconds"] = loop.profiled(together)
    dist.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(found))


@dataclass
class Loop:
    """The loop of `ftray train`: LoRA of rank 16 on all linear layers, compiled on a GPU."""

    model: Path
    device: torch.device
    _number: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._config = config = _config(self.model, compiled=self.device.type == "cuda")
        self._trainee = build_trainee(config, self.model, Place(0, 1, self.device), "")
        trained = self._trainee.attached.trainable.values()
        self._optimizer = build_optimizer(trained, config.train)
        vocabulary = int(json.loads((self.model / "config.json").read_text())["vocab_size"])
        ids = torch.randint(8, vocabulary, (64, LENGTH), generator=torch.Generator().manual_seed(0))
        learned = bytes([0, *[1] * (LENGTH - 1)])
        self._rows = MemoryRows([Tokens(row, learned) for row in ids.tolist()])
        self._intake = Intake(Tables(self._rows, None), config)

    def step(self, place: Place, micros: int) -> None:
        """Take a step of so many micro-batches a worker."""
        packs = self._intake.packs(self._number)[: micros * MICRO * place.world_size]
        work = [micro_batch(self._rows, packs, some) for some in share(len(packs), place, MICRO)]
        train_step(self._trainee, work, place, self._config.train, self._number)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._number += 1

    def seconds(self, place: Place, micros: int, steps: int = 8) -> float:
        """The median of some steps, each from an idle GPU to an idle GPU."""
        taken = []
        for _ in range(steps):
            began = time.perf_counter()
            self.step(place, micros)
            self._wait()
            taken.append(time.perf_counter() - began)
        return median(taken)

    def profiled(self, place: Place, steps: int = 2) -> Figures:
        """What kernels take of a step by their kind, and how long the GPU has none, in ms."""
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(steps):
                self.step(place, 1)
            self._wait()
        spans = sorted(
            (one.time_range.start, one.time_range.end, one.name)
            for one in seen.events()
            if one.device_type == torch.autograd.DeviceType.CUDA and not _is_note(one.name)
        )
        sums, idle, last = dict.fromkeys([*KINDS, "other"], 0.0), 0.0, spans[0][0]
        for start, end, name in spans:
            sums[_kind(name)] += (end - start) / 1000 / steps
            idle += max(0.0, start - last) / 1000 / steps
            last = max(last, end)
        return {**sums, "idle": idle, "whole": (last - spans[0][0]) / 1000 / steps}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _config(model: Path, *, compiled: bool) -> RunConfig:
    tree = {
        "name": "loop",
        "model": {"name": str(model)},
        "adapter": {"method": "lora", "rank": 16},
        "data": {"train": "made.jsonl", "max_length": LENGTH},
        "train": {
            "max_steps": 10_000,
            "global_batch_size": 16 * MICRO,
            "micro_batch_size": MICRO,
            "schedule": "constant",
            "compile": compiled,
        },
    }
    return validated(RunConfig, tree, "scaling_loop.py")


def _is_note(name: str) -> bool:
    """Whether it is no kernel, but what torch says of several."""
    return name.startswith(("nccl:", "Optimizer."))


def _kind(kernel: str) -> str:
    name = kernel.lower()
    return next((kind for kind, words in KINDS.items() if any(w in name for w in words)), "other")


def _meet(folder: Path, name: str, rank: int, workers: int) -> None:
    """Wait for all others; not with a collective, which would keep the GPUs busy."""
    (folder / f"{name} {rank}").touch()
    while not all((folder / f"{name} {other}").exists() for other in range(workers)):
        time.sleep(0.01)


def _in_memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _print(found: list[Figures]) -> None:
    for rank, one in enumerate(found):
        whole = {key: value for key, value in one.items() if isinstance(value, float)}
        shown = ", ".join(f"{name} {value * 1000:.1f} ms" for name, value in whole.items())
        print(f"worker {rank}: {shown}; of a step: {one.get('milliseconds')}")  # noqa: T201


if __name__ == "__main__":
    main()
