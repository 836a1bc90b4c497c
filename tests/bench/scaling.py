"""How training scales with workers, and whether it stays right: `ftray train`, timed from outside.

    python tests/bench/scaling.py [--workers 1,2,4,8] [--runs "lora-ddp 8B,full-fsdp 1.5B"]
        [--steps 20] [--seconds 3600] [--each 600] [--out FILE]

On GPUs over NCCL where there are several, else over gloo on CPUs, which only shows that it runs.
README.md here says how to read it.
"""

import argparse
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue

import torch
from machine import describe, load
from scaling_forecast import FORECASTS, compared, forecast
from scaling_kinds import ON_CPUS, ON_GPUS, Kind, Sizes, on_gpus, write_rows
from scaling_models import write_model
from scaling_runs import FailedError, Figures, measured, survived
from scaling_tables import print_tables

from ftray.model.shape import read_shape
from ftray.train.memory import Worker
from ftray.train.traffic import traffic

RESULTS = Path(__file__).with_name("results")
PACKAGES = ("ray", "torch", "transformers", "peft", "bitsandbytes", "numpy")
SAME = {"cpu": 1e-4, "cuda": 2e-2}  # relative, of a step's loss: fp32, and bf16 with its 8 bits
SURVIVES = Kind("full", "fsdp", "tiny", 2, 128)
SURVIVES_STEPS, SAVE_EVERY = 240, 2  # enough that it can be paused before its end
ENV = {
    "HF_HUB_OFFLINE": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}

logger = logging.getLogger("scaling")


def main() -> None:
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what it started ends with it
    os.environ.update(ENV)
    device = "cuda" if on_gpus() else "cpu"
    results: Figures = {
        "machine": {**describe(PACKAGES), "device": _device(device)},
        "load_before": load(),
        "steps": options.steps,
        "forecast": [line for one in FORECASTS for line in forecast(one)],
    }
    path = options.out or RESULTS / f"scaling-{device}-{datetime.now(UTC):%Y-%m-%d}.json"
    path.parent.mkdir(exist_ok=True, parents=True)
    with tempfile.TemporaryDirectory(prefix="ftray-bench-", dir=_roomy()) as made:
        limits = Limits(options.seconds, options.each)
        sizes = (options.workers, options.steps)
        bench = Bench(Path(made), device, *sizes, limits, options.models)
        for found in bench.all(_chosen(options, device)):
            results |= {**found, "load_after": load()}
            path.write_text(json.dumps(results, indent=1) + "\n")
    print_tables(results)


@dataclass(frozen=True)
class Limits:
    """Seconds after which no run begins, and that one may take."""

    seconds: float
    each: float
    _began: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Seconds for the next run; FailedError where there are none."""
        left = self.seconds - (time.monotonic() - self._began)
        if left <= 0:
            raise FailedError("not begun: --seconds were over")
        return min(left, self.each)


@dataclass
class Bench:
    """The temporary folder, what is trained on, and for how long."""

    folder: Path
    device: str
    workers: list[int]
    steps: int
    limits: Limits
    kept: Path | None
    _models: dict[str, Path] = field(default_factory=dict)

    def all(self, kinds: list[Kind]) -> Iterator[Figures]:
        """Measure the links, each kind on each number of workers, and what survives.

        Yields all that is known after each run, should the next one not end.
        """
        most = max(self.workers)
        found: Figures = {"links": self._links(most), "runs": [], "survived": None, "missing": []}
        curves: dict[Kind, list[Figures]] = {kind: [] for kind in kinds if kind != SURVIVES}
        together = [n for n in sorted(self.workers, reverse=True) if n > 1]
        for kind, workers in ((kind, n) for kind in kinds for n in together if n >= kind.least):
            if kind != SURVIVES:
                self._note(curves, kind, found, partial(self._one, kind, workers))
            elif workers == most:
                found["survived"] = self._survived(kind, most)
            yield found
        if 1 in self.workers:
            self._lone([kind for kind in curves if kind.least == 1], curves, found)
            yield found

    def _lone(self, kinds: list[Kind], curves: dict[Kind, list[Figures]], found: Figures) -> None:
        """One worker of each kind, on a GPU each, side by side.

        One worker shards nothing, so that one run serves all strategies.
        """
        first = {(kind.method, kind.shape): kind for kind in reversed(kinds)}
        free: SimpleQueue[int | None] = SimpleQueue()
        gpus = list(range(max(self.workers))) if self.device == "cuda" else [None]
        for gpu in gpus:
            free.put(gpu)

        def measure(kind: Kind) -> Figures:
            gpu = free.get()
            try:
                return self._one(kind, 1, gpu)
            finally:
                free.put(gpu)

        for kind in first.values():  # written before several ask for them
            self._model(kind.shape), self._rows(kind)
        with ThreadPoolExecutor(len(gpus)) as side_by_side:
            runs = {known: side_by_side.submit(measure, kind) for known, kind in first.items()}
        for kind in kinds:
            self._note(curves, kind, found, runs[kind.method, kind.shape].result)

    def _note(
        self,
        curves: dict[Kind, list[Figures]],
        kind: Kind,
        found: Figures,
        run: Callable[[], Figures],
    ) -> None:
        try:
            curves[kind].append({**run(), "run": kind.name})
        except FailedError as error:
            found["missing"].append(f"{kind.name}: {error}")
        found["runs"] = [
            one
            for some in curves.values()
            for one in compared(some, found["links"], SAME[self.device])
        ]

    def _one(self, kind: Kind, workers: int, gpu: int | None = None) -> Figures:
        left = self.limits.left()
        sizes = Sizes(workers, max(self.workers), self.steps, self.steps)
        config = kind.config(self._model(kind.shape), self._rows(kind), self.folder, sizes)
        figures = measured(config, self.folder, left, gpu)
        rate, begun = figures["per_worker"], figures["first_step_after_seconds"]
        logger.info("%s: %.0f tokens/s a worker, began after %.0f s", config.name, rate, begun)
        shape = read_shape(self._model(kind.shape))
        assert shape is not None
        worker = Worker("gpu" if self.device == "cuda" else "cpu", workers, None, "")
        sent = traffic(config, shape, worker, sizes.most // workers)
        parts = {"gathered": sent.gathered, "scattered": sent.scattered, "summed": sent.summed}
        return {"run": kind.name, **figures, "sent": parts}

    def _survived(self, kind: Kind, workers: int) -> Figures:
        """A run with faults and one without, beside it: neither is timed."""
        sizes = Sizes(workers, workers, SURVIVES_STEPS, SAVE_EVERY)
        paths = (self._model(kind.shape), self._rows(kind), self.folder)
        undisturbed = kind.config(*paths, sizes)
        config = undisturbed.model_copy(update={"name": "survives"})
        scaling = config.scaling.model_copy(update={"num_workers": workers // 2})
        fewer = config.model_copy(update={"scaling": scaling})
        try:
            left = self.limits.left()
            with ThreadPoolExecutor(1) as beside:
                expected = beside.submit(measured, undisturbed, self.folder, left)
                found = survived(config, fewer, self.folder, left)
                losses = expected.result()["losses"]
        except FailedError as error:
            return {"failed": str(error)}
        logger.info("%s: survived", config.name)
        pairs = zip(losses, found["losses"], strict=True)
        found["largest_difference"] = max(abs(a - b) / abs(a) for a, b in pairs)
        found["is_same"] = found["largest_difference"] <= SAME[self.device]
        return found

    def _links(self, workers: int) -> Figures | None:
        if workers == 1:
            return None
        answer = self.folder / "links.json"
        program = Path(__file__).with_name("scaling_links.py")
        subprocess.run([sys.executable, program, str(workers), answer], check=True)
        found: Figures = json.loads(answer.read_text())
        return found

    def _model(self, shape: str) -> Path:
        """Write it when it is first asked for."""
        if shape not in self._models:
            folder = (self.kept or self.folder) / f"model-{shape.lower()}"
            self._models[shape] = folder
            if (folder / "tokenizer_config.json").exists():  # written last
                return folder
            # in a process of its own, which takes what it has on a GPU with it
            writer = get_context("spawn").Process(target=write_model, args=(shape, folder))
            writer.start()
            writer.join()
            logger.info("%s: written", folder.name)
        return self._models[shape]

    def _rows(self, kind: Kind) -> Path:
        file = self.folder / f"rows-{kind.length}.jsonl"
        if not file.exists():
            write_rows(4 * max(self.workers) * kind.micro, kind.length, file)
        return file


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=_numbers, help="as 1,2,4; else 1, 2, 4 … up to the GPUs")
    parser.add_argument("--runs", help="names of runs, comma between; else those of the device")
    parser.add_argument("--steps", type=int, default=20, help="steps of each run; 3 do not count")
    parser.add_argument("--seconds", type=float, default=3600, help="no run begins after that")
    parser.add_argument("--each", type=float, default=600, help="seconds that a run may take")
    parser.add_argument("--models", type=Path, help="where models are kept; else deleted")
    parser.add_argument("--out", type=Path, help="where the result goes; else to results/")
    options = parser.parse_args()
    most = torch.cuda.device_count() if on_gpus() else 4
    options.workers = options.workers or [n for n in (1, 2, 4, 8) if n <= most]
    return options


def _numbers(text: str) -> list[int]:
    return sorted(int(number) for number in text.split(","))


def _chosen(options: argparse.Namespace, device: str) -> list[Kind]:
    known = {kind.name: kind for kind in (*ON_GPUS, *ON_CPUS)}
    if options.runs is None:
        usual = ON_GPUS if device == "cuda" else ON_CPUS
        first, *others = [kind for kind in usual if kind.shape != "70B" and kind != SURVIVES]
        return [first, SURVIVES, *others]
    if unknown := [name for name in options.runs.split(",") if name not in known]:
        raise SystemExit(f"no run is called {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in options.runs.split(",")]


def _roomy() -> str | None:
    """Memory where there is much of it, for weights are loaded by each worker of each run."""
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > 80e9
    return str(memory) if has_room else None


def _device(device: str) -> str:
    if device == "cpu":
        return "CPU"
    return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"


if __name__ == "__main__":
    main()
