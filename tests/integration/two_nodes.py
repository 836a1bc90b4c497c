"""Train on one Ray node and then on two of this machine, as a program; `test_nodes.py` starts it.

A program of its own, since a process has one connection to Ray, and tests keep theirs.
"""

import json
import sys
import threading
from pathlib import Path

import psutil
import ray
from ray.cluster_utils import Cluster

from ftray import commands, runs

NODE = {"num_cpus": 2, "object_store_memory": 200_000_000}


class Sightings(threading.Thread):
    """Which raylets have started training workers: each node's workers are its children."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.nodes: set[int] = set()
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.2):
            for process in psutil.Process().children(recursive=True):
                try:
                    if "RayTrainWorker" in "".join(process.cmdline()):
                        self.nodes.add(process.ppid())
                except psutil.NoSuchProcess:
                    continue


def trained(folder: Path, name: str, workers: int) -> dict[str, object]:
    sightings = Sightings()
    sightings.start()
    # two workers of 1.5 CPUs do not fit on one node of 2
    scaling = f"scaling={{num_workers: {workers}, cpus_per_worker: {1.5 if workers > 1 else 1}}}"
    run_file, cluster_file = str(folder / "run.yaml"), str(folder / "cluster.yaml")
    result = commands.train(run_file, [f"name={name}", scaling], cluster=cluster_file)
    sightings.done.set()
    sightings.join()
    lines = runs.read_metrics(result.run)
    return {
        "nodes": len(sightings.nodes),
        "losses": [line["loss"] for line in lines if "loss" in line],
        "eval_losses": [line["eval_loss"] for line in lines if "eval_loss" in line],
        "adapter": result.adapter.ref,
    }


def main(folder: Path) -> None:
    head = {**NODE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    (folder / "cluster.yaml").write_text(f"address: {cluster.address}\n")
    found = {"one": trained(folder, "one", 1)}
    cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    found["two"] = trained(folder, "two", 2)
    (folder / "found.json").write_text(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
