"""Train while a node is lost and another joins, as a program that `test_restarts.py` starts.

A program of its own, since a process has one connection to Ray, and tests keep theirs. Nodes are
added by the main thread, which alone may set signal handlers, so training has one of its own.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from ftray import commands, runs
from ftray.runs import Run
from ftray.train import size

NODE = {"num_cpus": 2, "object_store_memory": 200_000_000}
QUICK = {  # a dead node is noticed within 2 s instead of 15
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}


def main(folder: Path) -> None:
    size._SETTLE_SECONDS = 5.0  # long enough here: a group need not pay for its start
    head = {**NODE, "include_dashboard": False, "_system_config": QUICK}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    lost = cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    (folder / "cluster.yaml").write_text(f"address: {cluster.address}\n")
    run = Run(str(folder / "root"), "elastic")
    run_file, cluster_file = str(folder / "run.yaml"), str(folder / "cluster.yaml")
    training = threading.Thread(
        target=lambda: commands.train(run_file, ["name=elastic"], cluster=cluster_file), daemon=True
    )
    training.start()
    wait_for(run, training, 1, workers=2)
    cluster.remove_node(lost, allow_graceful=False)
    wait_for(run, training, 2, workers=1)
    cluster.add_node(**NODE)
    wait_for(run, training, 3, workers=2)
    lines = runs.read_metrics(run)
    found = {
        "losses": [line["loss"] for line in lines],
        "steps": [line["step"] for line in lines],
        "sizes": [record.world_size for record in runs.checkpoints(run)][::-1],
    }
    (folder / "found.json").write_text(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()
    os._exit(0)  # the run has more steps than anybody waits for


def wait_for(run: Run, training: threading.Thread, attempt: int, *, workers: int) -> None:
    """Wait until an attempt with so many workers has saved twice."""
    while training.is_alive():
        saved = [r for r in runs.checkpoints(run) if r.attempt == attempt]
        if len(saved) > 1 and {record.world_size for record in saved} == {workers}:
            return
        time.sleep(0.1)
    raise RuntimeError(f"training ended before attempt {attempt} had {workers} workers")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
