"""What a row costs in one process, by module and function: the work of one task, without Ray.

Run by data.py with a file of settings. A first pass is timed alone; the second is interrupted a
thousand times a second of CPU time, and the innermost function of ftray's that it is in counts.
"""

import json
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import FrameType

from ftray.config.data import DataConfig, sources_of
from ftray.data.tokens.pipeline import plan_tokens

EVERY = 0.001  # seconds of CPU time
FUNCTIONS = 15  # that are named


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    data = DataConfig.model_validate({"train": settings["folder"], "format": "messages"})
    root = settings["root"]
    job = plan_tokens(sources_of(data.train), data, Path(settings["model"]), root)

    def make(folder: str) -> int:
        recipe = replace(job.recipe, folder=f"{root}/{folder}")
        return sum(shard.rows for part in job.ranges for shard in recipe.make(part))

    make("warm")
    started = time.perf_counter()
    rows = make("timed")
    seconds = time.perf_counter() - started
    sampled: Counter[str] = Counter()

    def sample(number: int, frame: FrameType | None) -> None:
        sampled[_part(frame)] += 1

    signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, EVERY, EVERY)
    make("sampled")
    signal.setitimer(signal.ITIMER_PROF, 0)
    share = seconds / rows * 1e6 / sampled.total()
    modules: Counter[str] = Counter()
    for name, count in sampled.items():
        modules[name.partition(" ")[0]] += count
    answer = {
        "rows": rows,
        "us_per_row": seconds / rows * 1e6,
        "modules": {name: count * share for name, count in modules.most_common()},
        "functions": {name: count * share for name, count in sampled.most_common(FUNCTIONS)},
    }
    Path(settings["answer"]).write_text(json.dumps(answer))


def _part(frame: FrameType | None) -> str:
    """Name the innermost function of ftray's data plane or storage that a frame is in."""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("ftray."):
            return f"{module.removeprefix('ftray.')} {frame.f_code.co_qualname}"
        frame = frame.f_back
    return "elsewhere"


if __name__ == "__main__":
    main()
