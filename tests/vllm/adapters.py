"""Adapters for a small real model, each with a prompt that gives it away."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from ftray.model.export import load_with_peft
from tests.unit.serve.engine.conftest import (
    SHAPES,
    Zoo,
    plain_batch,
    plain_greedy,
    write_adapter,
)

# Spread of B by shape: adapters of few layers need more until their text differs from all others.
SPREADS = (0.3, 1.0, 0.3, 0.3, 0.3, 0.3, 1.0, 0.3)


def make_zoo(base_folder: Path, root: Path) -> Zoo:
    """Write one adapter of each shape, and answer with plain PEFT, one row at a time."""
    names = [f"sha256-{number}" for number in range(len(SHAPES))]
    folders = {name: root / name for name in names}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        for name, shape, spread in zip(names, SHAPES, SPREADS, strict=True):
            write_adapter(base_folder, folders[name], shape, spread)
        prompts = {
            name: tuple(torch.randint(300, 40_000, (5 + 9 * number,)).tolist())
            for number, name in enumerate(names)
        }
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    alone = {(None, whose): plain_greedy(base, prompt) for whose, prompt in prompts.items()}
    elsewhere = plain_batch(base, prompts)
    for name in names:
        base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
        tuned = load_with_peft(base, folders[name])
        elsewhere |= {(name, whose): ids for (_, whose), ids in plain_batch(tuned, prompts).items()}
        alone[name, name] = plain_greedy(tuned, prompts[name])
    return Zoo(base_folder, folders, prompts, {**elsewhere, **alone})
