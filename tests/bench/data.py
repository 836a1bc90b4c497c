"""The data plane against `datasets.map`: one run, one table, one JSON file with versions.

    python tests/bench/data.py [--rows 1000000] [--quick]

Both sides use two processes of one thread on the same two cores, one side after the other, and
their tokens and labels are compared. README.md here says what each does.
"""

import argparse
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chats import Chats, write_chats
from figures import Figures, of_ours, of_peer
from machine import describe, load
from tables import print_tables
from watch import Watched, run_side

from ftray.config.run import BUILTIN_MODEL, ModelConfig
from ftray.model.folder import fetch

RESULTS = Path(__file__).with_name("results")
RANGE_BYTES = 8 * 2**20
RANGES = 16  # at least, however few rows: with fewer, one worker idles at the end for long
ENV = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
ORDERS = (["ours", "batched", "trl"], ["trl", "batched", "ours"], ["batched", "ours", "trl"])


def main() -> None:
    options = _options()
    os.environ.update(ENV)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # what is started inherits it
    results: dict[str, Any] = {"machine": describe(), "load_before": load()}
    with tempfile.TemporaryDirectory(prefix="ftray-bench-") as folder:
        bench = Bench(Path(folder), _model(Path(folder), options.model_root))
        if options.quick:
            results |= _measure(bench, growth=[1000], compared=5000, repeats=1, largest=None)
        else:
            tenth = options.rows // 10
            results |= _measure(bench, [tenth // 10], tenth, repeats=3, largest=options.rows)
    results["load_after"] = load()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"data-{datetime.now(UTC):%Y-%m-%d}{'-quick' if options.quick else ''}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print_tables(results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the largest run")
    parser.add_argument("--quick", action="store_true", help="5,000 rows: does it run at all?")
    parser.add_argument(
        "--model-root",
        default=os.environ.get("FTRAY_TEST_CACHE"),
        help="where the built-in model is unpacked; else it is unpacked for this run",
    )
    return parser.parse_args()


def _measure(
    bench: "Bench", growth: list[int], compared: int, repeats: int, largest: int | None
) -> dict[str, Any]:
    """Return the figures of each run, the smallest first."""
    results: dict[str, Any] = {"growth": [bench.compare(size, ["ours"]) for size in growth]}
    results["compared"] = [bench.compare(compared, ORDERS[turn]) for turn in range(repeats)]
    results["largest"] = bench.compare(largest, ["ours", "batched"]) if largest else None
    results["cost"] = bench.cost(min(compared, 20_000))
    results["training"] = bench.train(largest or 300_000)  # still being made when training starts
    return results


@dataclass
class Bench:
    """The temporary folder of a run, and a model folder with tokenizer and weights."""

    folder: Path
    model: Path

    def compare(self, rows: int, sides: list[str]) -> dict[str, Figures]:
        """Run sides one after the other on the same rows; their tokens and labels must be equal."""
        chats = write_chats(self.folder / "chats", rows)
        sample = [*range(min(rows, 200)), *range(200, rows, 97)]
        settings = {"sample": sample, "range_bytes": _range_bytes(chats)}
        watched = {side: self._run(side, chats, settings) for side in sides}
        shutil.rmtree(self.folder / "chats")
        _check_equal({side: ran.said["sample"] for side, ran in watched.items()}, sample)
        return {
            side: of_ours(ran) if side == "ours" else of_peer(ran) for side, ran in watched.items()
        }

    def cost(self, rows: int) -> Figures:
        """Return what a row costs in one process, by part."""
        chats = write_chats(self.folder / "chats", rows, files=1)
        watched = self._run("cost", chats, {})
        shutil.rmtree(self.folder / "chats")
        return watched.said

    def train(self, rows: int) -> Figures:
        """Return how long a trainer waited for data while its tokens were being made."""
        chats = write_chats(self.folder / "chats", rows)
        watched = self._run("training", chats, {})
        shutil.rmtree(self.folder / "chats")
        return watched.said

    def _run(self, side: str, chats: Chats, settings: dict[str, Any]) -> Watched:
        script = f"{side}.py" if side in ("ours", "cost", "training") else "peer.py"
        folder = self.folder / "run"
        given = {
            "how": side,
            "folder": str(chats.files[0].parent),
            "files": [str(path) for path in chats.files],
            "model": str(self.model),
            "root": str(folder / "root"),
        }
        watched = run_side(script, {**given, **settings}, folder)
        shutil.rmtree(folder)
        return watched


def _model(folder: Path, root: str | None) -> Path:
    """Return the built-in model's folder."""
    return fetch(ModelConfig(name=BUILTIN_MODEL), root or str(folder / "model-root"))


def _range_bytes(chats: Chats) -> int:
    return min(RANGE_BYTES, chats.bytes // RANGES)


def _check_equal(sampled: dict[str, Any], numbers: list[int]) -> None:
    first, *others = sampled
    for other in others:
        for number, one, two in zip(numbers, sampled[first], sampled[other], strict=True):
            if one != two:
                raise SystemExit(f"row {number} differs:\n{first}: {one}\n{other}: {two}")


if __name__ == "__main__":
    main()
