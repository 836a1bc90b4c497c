"""Serving: mixed adapters in one batch, beside PEFT, beside static batching, and through HTTP.

    python tests/bench/serve.py [--rounds 3] [--quick] [--vllm]

Sides take turns within a round, and figures are medians over rounds. README.md here says what each
one does.
"""

import argparse
import json
import os
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).with_name("results")
SHARED = Path(__file__).parents[1] / "integration" / "serve"
ENV = {
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # as the command line sets it,
    "GOMP_SPINCOUNT": "20000",  # and `ftray serve` for its engines
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
os.environ.update(ENV)  # libraries read it when they are imported
sys.path.append(str(SHARED))

import torch  # noqa: E402
from adapters import Base  # noqa: E402  # beside the integration tests
from machine import describe, load  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from serve_batches import Batches  # noqa: E402
from serve_http import served  # noqa: E402

from ftray.config.run import BUILTIN_MODEL, ModelConfig  # noqa: E402
from ftray.model.folder import fetch  # noqa: E402

NAMES = tuple(f"adapter-{number}" for number in range(8))
SHAPE = {"r": 16, "target_modules": "all-linear"}


def main() -> None:
    options = _options()
    results: dict[str, Any] = {
        "machine": {**describe(), "peft": version("peft"), "openai": version("openai")},
        "load_before": load(),
        "rounds": options.rounds,
    }
    with tempfile.TemporaryDirectory(prefix="ftray-bench-") as made:
        folder = Path(made)
        torch.set_num_threads(1)  # as in a replica: the engine takes its own
        model = fetch(ModelConfig(name=BUILTIN_MODEL), options.model_root or str(folder / "root"))
        folders = _publish(folder, model)
        tokens = 8 if options.quick else 24
        batches = Batches(model, folders, tokens)
        results |= batches.measure(options.rounds)
        results["seconds"] |= batches.measure_precisions(options.rounds)
        if options.vllm:
            results["seconds"] |= batches.measure_vllm(options.rounds)
        results["http"] = served(folder, model, NAMES, tokens, options.rounds)
    results["load_after"] = load()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"serve-{datetime.now(UTC):%Y-%m-%d}{'-quick' if options.quick else ''}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    _print(results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="each side's turns")
    parser.add_argument("--quick", action="store_true", help="8 tokens: does it run at all?")
    parser.add_argument(
        "--vllm", action="store_true", help="also vLLM, of $FTRAY_VLLM_PYTHON (make .venv-vllm)"
    )
    parser.add_argument(
        "--model-root",
        default=os.environ.get("FTRAY_TEST_CACHE"),
        help="where the built-in model is unpacked; else it is unpacked for this run",
    )
    return parser.parse_args()


def _publish(folder: Path, model: Path) -> dict[str, Path]:
    base = Base(model)
    folders = {name: folder / name for name in NAMES}
    for seed, (name, path) in enumerate(folders.items()):
        base.write_adapter(path, seed, SHAPE)
        base.publish(str(folder / "storage"), name, path)
    return folders


def _print(results: dict[str, Any]) -> None:
    console = Console(width=110)
    console.print(", ".join(f"{k} {v}" for k, v in results["machine"].items()), style="dim")
    console.print(f"load average before {results['load_before']}, after {results['load_after']}")
    table = Table("batches, without HTTP", "seconds", "ratio", "aim")
    middle = {side: median(times) for side, times in results["seconds"].items()}
    for side, seconds in middle.items():
        table.add_row(side, f"{seconds:.2f}", "", "")
    for name, ratio in results["ratios"].items():
        table.add_row(name, "", f"{ratio['value']:.2f}", ratio["aim"])
    console.print(table)
    table = Table("through HTTP and Ray Serve, 16 streams", "")
    for name, value in results["http"].items():
        table.add_row(name, json.dumps(value))
    console.print(table)


if __name__ == "__main__":
    main()
