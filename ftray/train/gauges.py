"""What Prometheus sees of a run: gauges on the metrics port that Ray has on every machine.

They are of the first worker, by the run's name; Ray puts `ray_` before theirs. Setting them takes
microseconds a step: Ray's own thread sends them.
"""

import math
from collections.abc import Iterator, Mapping

import torch
from ray.util.metrics import Gauge

from ftray.train.metrics import Line

OF_LINES: Mapping[str, str] = {
    "step": "Steps done.",
    "loss": "Mean loss over the label tokens of the last step's batch.",
    "eval_loss": "Loss of the last evaluation.",
    "grad_norm": "Norm of the last step's gradient before clipping.",
    "learning_rate": "Learning rate of the last step.",
    "tokens_per_second": "Tokens of the last step a second, over all workers.",
    "mfu": "Share of the GPU's peak that the last step used; not on CPUs.",
    "step_seconds": "Duration of the last step, waiting for data included.",
    "data_wait_seconds": "What of it was waiting for data.",
}
OF_RUNS: Mapping[str, str] = {
    "total_steps": "Steps that the run will have taken.",
    "restarts": "How often the run was started again.",
    "gpu_memory_bytes": "The most that the first worker has held of its GPU.",
}


def metric_name(key: str) -> str:
    """Return what Prometheus calls a gauge."""
    return f"ray_{_name(key)}"


class Gauges:
    """A sink that shows each line's numbers until the next line."""

    def __init__(self, run: str, total_steps: int, restarts: int, device: torch.device) -> None:
        self._device = device
        known = {**OF_LINES, **OF_RUNS}
        self._gauges = {key: _gauge(key, text, run) for key, text in known.items()}
        self._gauges["total_steps"].set(total_steps)
        self._gauges["restarts"].set(restarts)

    def write(self, line: Line) -> None:
        """Show the numbers of one step or one evaluation."""
        for key, value in shown(line):
            self._gauges[key].set(value)
        if self._device.type == "cuda" and "loss" in line:
            self._gauges["gpu_memory_bytes"].set(torch.cuda.max_memory_allocated(self._device))

    def flush(self) -> None:
        """Ray sends them every few seconds."""

    def close(self) -> None:
        """They go with this process."""


def shown(line: Line) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a line that there are gauges for; one that is none leaves the last."""
    for key in OF_LINES:
        value = line.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            yield key, float(value)


def _gauge(key: str, text: str, run: str) -> Gauge:
    gauge = Gauge(_name(key), text, tag_keys=("run",))
    gauge.set_default_tags({"run": run})
    return gauge


def _name(key: str) -> str:
    return f"ftray_train_{key}"
