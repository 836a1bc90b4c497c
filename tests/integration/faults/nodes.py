"""A cluster of several nodes on this machine; nodes are killed, or drained, and replaced."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

_HEAD = {"num_cpus": 1, "object_store_memory": 200_000_000, "include_dashboard": False}
_NODE = {"num_cpus": 2, "object_store_memory": 200_000_000}
WORKER = "scaling.cpus_per_worker=1.5"  # so that the head holds none
_GRACE_SECONDS = 20
_QUICK = {  # a dead node is noticed within 2 s instead of 15
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}


class Nodes:
    """A head that the command runs on, and two nodes that hold a worker each."""

    def __init__(self, folder: Path) -> None:
        head = {**_HEAD, "_system_config": _QUICK}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes = [self._cluster.add_node(**_NODE) for _ in range(2)]
        self._cluster.wait_for_nodes()
        (folder / "cluster.yaml").write_text(f"address: {self._cluster.address}\n")

    def close(self) -> None:
        """Stop all nodes."""
        self._cluster.shutdown()

    def kill(self, draw: int) -> None:
        """Kill a node's raylet and all that it has started; another node joins at once."""
        self._replace(self._nodes[draw % 2])

    def drain(self, draw: int) -> None:
        """Announce that a node will be taken, and take it; another one is there before."""
        node = self._nodes[draw % 2]
        self._nodes.append(self._cluster.add_node(**_NODE))
        command = ["drain-node", "--address", self._cluster.address, "--node-id", node.node_id]
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a fault"]
        grace = ["--deadline-remaining-seconds", str(_GRACE_SECONDS)]
        ray = Path(sys.executable).with_name("ray")
        subprocess.run([ray, *command, *reason, *grace], check=True, env=dict(os.environ))
        time.sleep(_GRACE_SECONDS)
        self._remove(node)

    def _replace(self, node: Any) -> None:
        self._remove(node)
        self._nodes.append(self._cluster.add_node(**_NODE))

    def _remove(self, node: Any) -> None:
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)
