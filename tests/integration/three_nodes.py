"""Makes a token set on three raylets of this machine, of which one is killed half way.

Run as a program: `three_nodes.py FOLDER MODEL` reads train.jsonl and writes found.json there.
"""

import json
import sys
import threading
import time
from pathlib import Path

import psutil
import ray
from ray.cluster_utils import Cluster

from ftray.config.data import DataConfig, sources_of
from ftray.data.tokens.pipeline import Job, make_all, plan_tokens

NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}
RANGE_BYTES = 20_000
HEALTH = {
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
    "health_check_initial_delay_ms": 0,
    "health_check_timeout_ms": 500,
}


def main(folder: Path, model: Path) -> None:
    """Make the tokens alone here, and then on three nodes; say what was seen."""
    data = DataConfig(train=str(folder / "train.jsonl"), max_length=128)
    sources = sources_of(data.train)
    alone, spread = (
        plan_tokens(sources, data, model, str(folder / root), range_bytes=RANGE_BYTES)
        for root in ("alone", "spread")
    )
    make_all(alone, range_bytes=10**9)  # without Ray
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "_system_config": HEALTH})
    others = [cluster.add_node(**NODE) for _ in range(2)]
    ray.init(address=cluster.address, logging_level="warning", log_to_driver=False)
    seen: set[int] = set()
    before: dict[str, int] = {}
    making = threading.Thread(target=make_all, args=(spread, RANGE_BYTES))
    making.start()
    while making.is_alive():
        seen |= _making()
        before = before or _half_made(spread)
        if before and len(others) == 2:
            cluster.remove_node(others.pop(), allow_graceful=False)
        time.sleep(0.02)
    making.join()
    found = {
        "nodes that made tokens": len(seen),
        "shards before the loss": len(before),
        "made again": [name for name, at in before.items() if _times(spread)[name] != at],
        "equal": _files(alone) == _files(spread),
        "shards": len(_files(alone)) // 3,
    }
    (folder / "found.json").write_text(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


def _making() -> set[int]:
    """The raylets whose workers make tokens now: each node's workers are its children."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            if "MapBatches" in "".join(process.cmdline()):
                found.add(process.ppid())
        except psutil.Error:
            continue  # it has just ended
    return found


def _half_made(job: Job) -> dict[str, int]:
    """The files of a third of the shards, once they are there; a shard has three."""
    times = _times(job)
    return times if len(times) >= len(job.ranges) else {}


def _times(job: Job) -> dict[str, int]:
    found = sorted(Path(job.folder).glob("shard-*"))
    return {path.name: path.stat().st_mtime_ns for path in found}


def _files(job: Job) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(job.folder).glob("shard-*"))}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
