"""The quickstart: a small real task, measured by generation before and after fine-tuning."""

import logging
import math
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch.nn import functional

from ftray.config.data import sources_of
from ftray.config.run import RunConfig, load_run
from ftray.connection import connecting
from ftray.data.sources import read_rows
from ftray.model.base import load_base, load_tokenizer
from ftray.model.folder import fetch
from ftray.model.lora import Routing
from ftray.model.loss import LanguageModel
from ftray.train.evaluate import EvalResult, measure
from ftray.train.fit import RunResult, fit
from ftray.train.tuned import evaluate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuickstartResult:
    """Held-out examples answered by the base model and by the tuned one, and the run between."""

    before: EvalResult
    after: EvalResult
    run: RunResult


def quickstart(*, root: str) -> QuickstartResult:
    """Fine-tune the built-in model to turn customers' messages into JSON tickets."""
    folder = Path(str(files("ftray.presets.quickstart")))
    config = load_run(folder / "run.yaml", [f"storage={root}", f"model.dtype={_faster_dtype()}"])
    heldout = str(folder / "heldout.jsonl")
    logger.info("answering %s with the base model", Path(heldout).name)
    before = _measure_base(config, heldout, root)
    with connecting(None) as connection:
        run = fit(config, connection, overwrite=True)
    logger.info("answering %s with %s", Path(heldout).name, run.adapter.ref)
    after = evaluate(run.adapter.ref, heldout, root=root)
    return QuickstartResult(before, after, run)


def _faster_dtype() -> str:
    """Time a matrix product of the model's size in both precisions: CPUs differ in bf16 by 10×."""
    seconds = {dtype: _seconds_of_product(dtype) for dtype in (torch.float32, torch.bfloat16)}
    ratio = seconds[torch.float32] / seconds[torch.bfloat16]
    choice = "bfloat16" if ratio > _WORTH_ROUNDING else "float32"
    logger.info("model.dtype=%s: bf16 products take 1/%.1f of fp32's time here", choice, ratio)
    return choice


_WORTH_ROUNDING = 1.2


def _seconds_of_product(dtype: torch.dtype) -> float:
    """The shortest of some runs, which others' load on the machine disturbs least."""
    x, weight = torch.randn(512, 576).to(dtype), torch.randn(1536, 576).to(dtype)
    shortest = math.inf
    for _ in range(20):
        began = time.perf_counter()
        functional.linear(x, weight)
        shortest = min(shortest, time.perf_counter() - began)
    return shortest


def _measure_base(config: RunConfig, heldout: str, root: str) -> EvalResult:
    folder = fetch(config.model, root)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = LanguageModel(load_base(folder, config.model, device), Routing(device))
    rows = list(read_rows(sources_of(heldout), config.data))
    return measure(model, load_tokenizer(folder), rows, config.data)
