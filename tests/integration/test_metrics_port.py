"""What a worker's gauges show on the metrics port of Ray's own agent."""

import time
from urllib.request import urlopen

import pytest
import ray
import torch
from prometheus_client.parser import text_string_to_metric_families

from ftray.train.gauges import Gauges, metric_name

LINE = {"step": 3, "loss": 1.25, "mfu": None, "tokens_per_second": 99.5, "samples": "text"}


@pytest.mark.usefixtures("ray_cluster")
def test_prometheus_reads_a_runs_gauges_from_rays_own_port() -> None:
    @ray.remote(num_cpus=0)
    class Worker:
        def train(self) -> None:
            self.gauges = Gauges("a-run", 100, 2, torch.device("cpu"))
            self.gauges.write(LINE)
            self.gauges.write({"step": 3, "eval_loss": 1.5})

    worker = Worker.remote()
    ray.get(worker.train.remote())
    wanted = {"step": 3, "loss": 1.25, "tokens_per_second": 99.5, "eval_loss": 1.5}
    wanted |= {"total_steps": 100, "restarts": 2}
    end = time.monotonic() + 60
    while (found := scraped()) != {metric_name(key): value for key, value in wanted.items()}:
        assert time.monotonic() < end, found
        time.sleep(1)
    ray.kill(worker)


def scraped() -> dict[str, float]:
    [node] = [node for node in ray.nodes() if node["Alive"]]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urlopen(address, timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        sample.name: sample.value
        for family in families
        for sample in family.samples
        if sample.labels.get("run") == "a-run"
    }
