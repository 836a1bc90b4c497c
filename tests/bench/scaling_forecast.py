"""What scaling should be by arithmetic: a step's bytes over a link, and its time to compute."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scaling_kinds import ON_GPUS, SHAPES, Kind, Sizes
from scaling_runs import Figures

from ftray.model.shape import ModelShape, flops_per_token, read_shape
from ftray.train.memory import Worker
from ftray.train.mfu import peak_flops
from ftray.train.traffic import LINKS, Traffic, efficiency, traffic

ASSUMED_MFU = 0.5
DEVICE = "H100"
WORKERS = (2, 8, 64)
FORECASTS = [kind for kind in ON_GPUS if kind.shape in ("8B", "70B")]


def forecast(kind: Kind) -> list[Figures]:
    """Predict efficiency for numbers of workers and links, one micro-batch a worker and step."""
    shape = _shape(kind.shape)
    flops = flops_per_token(shape, kind.length, frozen_base=kind.method != "full")
    tokens = kind.micro * kind.length
    computing = tokens * flops / (ASSUMED_MFU * (peak_flops(DEVICE) or 0.0))
    found = []
    for workers in WORKERS:
        sent = _sent(kind, shape, workers)
        ranges = {link: efficiency(sent, computing, speed) for link, speed in LINKS.items()}
        found.append(
            {
                "run": kind.name,
                "workers": workers,
                "computing_seconds": computing,
                "sent": sent.total,
                "efficiency": ranges,
            }
        )
    return found


def compared(runs: Sequence[Figures], links: Figures | None, tolerance: float) -> list[Figures]:
    """Add to runs of one kind what one worker says about the others, and the links about all."""
    alone = next((run for run in runs if run["workers"] == 1), None)
    return [{**run, **_against(run, alone, links, tolerance)} for run in runs]


def _against(
    run: Figures, alone: Figures | None, links: Figures | None, tolerance: float
) -> Figures:
    found: Figures = {"efficiency": None, "predicted_efficiency": None, "communication": None}
    sent = Traffic(**run["sent"])
    if links is not None and sent.total:
        seconds = sent.summed / links["all_reduce"]
        seconds += sent.gathered / links["all_gather"] + sent.scattered / links["reduce_scatter"]
        found["communication"] = seconds / run["step_seconds"]  # a share, if nothing were hidden
    if alone is None or alone is run:
        return found
    differences = [abs(a - b) / abs(a) for a, b in zip(alone["losses"], run["losses"], strict=True)]
    found["efficiency"] = run["per_worker"] / alone["per_worker"]
    found["largest_difference"] = max(differences)
    found["is_same"] = max(differences) <= tolerance
    if links is not None:
        slowest = links["all_gather"] if sent.gathered else links["all_reduce"]
        computing = alone["step_seconds"] / run["workers"]
        found["predicted_efficiency"] = efficiency(sent, computing, slowest)
    return found


def _sent(kind: Kind, shape: ModelShape, workers: int) -> Traffic:
    nowhere = Path("/nowhere")
    config = kind.config(nowhere, nowhere, nowhere, Sizes(workers, workers, 1, 1))
    return traffic(config, shape, Worker("gpu", workers, None, DEVICE), accumulation=1)


def _shape(name: str) -> ModelShape:
    with tempfile.TemporaryDirectory() as folder:
        described = {**SHAPES[name], "tie_word_embeddings": False}
        Path(folder, "config.json").write_text(json.dumps(described))
        shape = read_shape(Path(folder))
    assert shape is not None
    return shape
