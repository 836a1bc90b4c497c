"""The quickstart: a small real task, measured by generation before and after fine-tuning."""

import logging
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch

from ftray.config.run import RunConfig, load_run
from ftray.data.sources import read_rows
from ftray.model.base import fetch, load_base, load_tokenizer
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
    config = load_run(folder / "run.yaml", [f"storage={root}"])
    heldout = str(folder / "heldout.jsonl")
    logger.info("answering %s with the base model", Path(heldout).name)
    before = _measure_base(config, heldout, root)
    run = fit(config, overwrite=True)
    logger.info("answering %s with %s", Path(heldout).name, run.adapter.ref)
    after = evaluate(run.adapter.ref, heldout, root=root)
    return QuickstartResult(before, after, run)


def _measure_base(config: RunConfig, heldout: str, root: str) -> EvalResult:
    folder = fetch(config.model, root)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = LanguageModel(load_base(folder, config.model, device), Routing(device))
    rows = list(read_rows([heldout], config.data))
    return measure(model, load_tokenizer(folder), rows, config.data)
