"""The loss curve of a run as a picture."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure


def loss_curve(name: str, metrics: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw training loss, its running mean and eval loss over steps; returns a PNG."""
    steps = [line for line in metrics if "loss" in line]
    evals = [line for line in metrics if "eval_loss" in line]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    xs, ys = [line["step"] for line in steps], [line["loss"] for line in steps]
    axes.plot(xs, ys, color="tab:blue", alpha=0.3, label="training loss")
    smooth = _running_mean(ys, window=len(ys) / 20)
    axes.plot(xs, smooth, color="tab:blue", label="training loss, smoothed")
    if evals:
        xs, ys = [line["step"] for line in evals], [line["eval_loss"] for line in evals]
        axes.plot(xs, ys, "o-", color="tab:orange", label="eval loss")
    axes.set(title=name, xlabel="optimizer step", ylabel="loss per label token (nats)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _running_mean(values: Sequence[float], window: float) -> list[float]:
    """Exponential mean over about `window` values, corrected for its start (as in Adam)."""
    means, mean, weight = [], 0.0, 1 - 1 / max(1.0, window)
    for count, value in enumerate(values, start=1):
        mean = weight * mean + (1 - weight) * value
        means.append(mean / (1 - weight**count))
    return means
