"""A search of 8 trials: packed on one base by `ftray tune`, beside one trial at a time.

    python tests/bench/tune.py [--rounds 3] [--steps 12] [--quick]

Everything from the command's start to its end counts. README.md here says what each side does; what
packing does on a GPU is in tune_gpu.py.
"""

import argparse
import itertools
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isclose
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from machine import describe, load
from rich.console import Console
from rich.table import Table
from training import small_model
from watch import Watched, run_command, run_side

import ftray.presets.quickstart
from ftray.config.run import BUILTIN_MODEL, ModelConfig
from ftray.model.folder import fetch

RESULTS = Path(__file__).with_name("results")
DATA = Path(next(iter(ftray.presets.quickstart.__path__)))
ENV = {
    "HF_HUB_OFFLINE": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
SPACE: dict[str, list[Any]] = {
    "train.learning_rate": [1e-4, 3e-4, 1e-3, 3e-3],
    "adapter.rank": [8, 16],
}
TRIALS = len(list(itertools.product(*SPACE.values())))
SIDES = {
    "packed": "ftray tune, packed",
    "one": "Ray Tune, one at a time with 2 cores",
    "two": "Ray Tune, two at once with 1 core each",
}
SAME = 1e-3  # relative: of one trial's eval loss on two sides, whose sums have another order
Figures = dict[str, Any]


def main() -> None:
    options = _options()
    os.environ.update(ENV)
    os.environ.pop("OMP_NUM_THREADS", None)  # each side says itself how many threads it has
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # what is started inherits it
    results: Figures = {"machine": describe(), "load_before": load(), "steps": options.steps}
    with tempfile.TemporaryDirectory(prefix="ftray-bench-") as made:
        folder = Path(made)
        root = options.model_root or str(folder / "model-root")
        model = fetch(ModelConfig(name=BUILTIN_MODEL), root)
        if options.quick:
            model = small_model(model, folder / "small")
        bench = Bench(folder, model, 3 if options.quick else options.steps)
        orders = [list(SIDES), list(reversed(SIDES))]
        rounds = 1 if options.quick else options.rounds
        results["rounds"] = [bench.compare(orders[turn % 2]) for turn in range(rounds)]
    results["load_after"] = load()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"tune-{datetime.now(UTC):%Y-%m-%d}{'-quick' if options.quick else ''}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    _print(results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="each side's turns")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps of each trial")
    parser.add_argument("--quick", action="store_true", help="2 layers, 3 steps: does it run?")
    parser.add_argument(
        "--model-root",
        default=os.environ.get("FTRAY_TEST_CACHE"),
        help="where the built-in model is unpacked; else it is unpacked for this run",
    )
    return parser.parse_args()


@dataclass
class Bench:
    """The temporary folder of a run, the base model's folder, and the steps of each trial."""

    folder: Path
    model: Path
    steps: int

    def compare(self, sides: list[str]) -> dict[str, Figures]:
        """Run the sides one after the other; each trial must come to the same on all of them."""
        found = {side: self._run(side) for side in sides}
        _check_same({side: figures["losses"] for side, figures in found.items()})
        return found

    def _run(self, side: str) -> Figures:
        folder = self.folder / "run"
        if side == "packed":
            figures = self._packed(folder)
        else:
            figures = self._peer(folder, *((2, 1) if side == "one" else (1, 2)))
        shutil.rmtree(folder)
        return figures

    def _packed(self, folder: Path) -> Figures:
        folder.mkdir()
        run, space = folder / "run.yaml", folder / "space.yaml"
        run.write_text(yaml.safe_dump(self._config(folder / "root")))
        search = {
            "space": {key: {"grid": some} for key, some in SPACE.items()},
            "num_samples": 1,
            "every_steps": self.steps,
            "scheduler": {"kind": "none"},
            "trials": "packed",
            "holdout": None,
            "publish": {"best": 0},
        }
        space.write_text(yaml.safe_dump(search))
        command = [sys.executable, "-m", "ftray", "tune", str(run), str(space)]
        watched = run_command(command, folder)
        place = folder / "root" / "searches" / "bench"
        rows = json.loads((place / "report" / "report.json").read_text())["rows"]
        losses = [[row["values"], row["metric"]] for row in rows]
        return {**_figures(watched, losses), "hosts": _hosts(place / "hosts.json")}

    def _peer(self, folder: Path, cpus: int, at_once: int) -> Figures:
        settings = {
            "run": self._config(folder / "root"),
            "space": SPACE,
            "cpus": cpus,
            "at_once": at_once,
            "root": str(folder / "root"),
        }
        watched = run_side("tune_peer.py", settings, folder)
        return _figures(watched, watched.said["losses"])

    def _config(self, root: Path) -> dict[str, Any]:
        """Two packs of 256 tokens a step, as the quickstart has it."""
        return {
            "name": "bench",
            "model": {"name": str(self.model)},
            "adapter": {"method": "lora", "alpha": 32},
            "data": {
                "train": str(DATA / "train.jsonl"),
                "eval": str(DATA / "heldout.jsonl"),
                "max_length": 256,
            },
            "train": {"max_steps": self.steps, "global_batch_size": 2, "micro_batch_size": 1},
            "storage": str(root),
        }


def _figures(watched: Watched, losses: list[Any]) -> Figures:
    if len(losses) != TRIALS or any(loss is None for _, loss in losses):
        raise SystemExit(f"expected {TRIALS} trials with a loss, found {losses}")
    return {
        "seconds": watched.seconds,
        "cpu_seconds": watched.cpu_seconds,
        "peak_gib": watched.peak_rss / 2**30,
        "losses": sorted(losses, key=lambda one: json.dumps(one[0], sort_keys=True)),
    }


def _hosts(path: Path) -> list[Figures]:
    """What each host's time went to, as the search says."""
    return list(json.loads(path.read_text())["hosts"])


def _check_same(losses: dict[str, list[Any]]) -> None:
    first, *others = losses
    for other in others:
        for (draw, one), (_, two) in zip(losses[first], losses[other], strict=True):
            if not isclose(one, two, rel_tol=SAME):
                raise SystemExit(f"trial {draw}: {first} came to {one}, {other} to {two}")


def _print(results: Figures) -> None:
    console = Console(width=110)
    console.print(", ".join(f"{k} {v}" for k, v in results["machine"].items()), style="dim")
    console.print(f"load average before {results['load_before']}, after {results['load_after']}")
    rounds = results["rounds"]
    title = f"{TRIALS} trials of {results['steps']} steps; medians of {len(rounds)}"
    table = Table("", "wall, s", "CPU, s", "memory, GiB", "packed is faster by", title=title)
    for side, name in SIDES.items():
        middle = [median(one[side][key] for one in rounds) for key in _SHOWN]
        ratio = median(one[side]["seconds"] / one["packed"]["seconds"] for one in rounds)
        table.add_row(name, *(f"{value:.1f}" for value in middle), f"{ratio:.2f} ×")
    console.print(table)
    for host in rounds[-1]["packed"]["hosts"]:
        spent = host["stepping"] + host["measuring"] + host["saving"]
        share = host["between"] / max(1e-9, host["stepping"])
        console.print(
            f"host: {host['steps']} joint steps in {host['stepping']:.1f} s, of {spent:.1f} s in"
            f" all; between them {share:.2%} of the steps' time (aim: less than 3%)"
        )


_SHOWN = ("seconds", "cpu_seconds", "peak_gib")


if __name__ == "__main__":
    main()
