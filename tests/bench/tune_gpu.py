"""Many trials on one base on a GPU, beside one at a time, and beside transformers with PEFT.

    python tests/bench/tune_gpu.py [--steps 12] [--quick] [--out FILE]

There is no Ray in it: it needs torch, transformers, peft, pydantic, pyarrow, rensa, tensorboardX.
Weights are random, so nothing is downloaded. README.md here says what each side does.
"""

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine import describe, load
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM
from tune_sides import DEVICE, Alone, Base, Host, Packed, Peft

RESULTS = Path(__file__).with_name("results")
PACKAGES = ("torch", "transformers", "peft", "numpy")
WARM = 4  # steps that are not counted: kernels are chosen, passes captured, memory is taken
EIGHT_B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
SMALLER = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
BASES = (Base("8B", EIGHT_B, (512, 1024), (8, 16)), Base("1.7B-like", SMALLER, (512,), (16,)))
QUICK = (Base("tiny", TINY, (64,), (4, 8)),)

Figures = dict[str, Any]


def main() -> None:
    options = _options()
    results: dict[str, Any] = {
        "machine": {**describe(PACKAGES), "device": _device_name()},
        "load_before": load(),
        "steps": options.steps,
        "measured": [],
    }
    name = f"tune-gpu-{datetime.now(UTC):%Y-%m-%d}{'-quick' if options.quick else ''}.json"
    path = options.out or RESULTS / name
    path.parent.mkdir(exist_ok=True, parents=True)
    bases = QUICK if options.quick else BASES
    for whole in [one for one in bases if options.base in (None, one.name)]:
        base = replace(whole, tokens=whole.tokens[:1]) if options.short else whole
        with _written(base, options.weights) as folder:
            torch.compiler.reset()  # it compiles a layer for so many models, and then no more
            for found in _packed(base, folder, options.steps):
                results["measured"].append(found)
                path.write_text(json.dumps(results, indent=1) + "\n")
            for side, kind in (("ftray alone", Alone), ("transformers + PEFT", Peft)):
                for tokens in base.tokens:
                    _emptied()
                    torch.compiler.reset()
                    one = kind(base, folder, tokens)
                    found = _measured(one.step, 1, tokens, options.steps)
                    results["measured"].append({"base": base.name, "side": side, **found})
                    path.write_text(json.dumps(results, indent=1) + "\n")
                    del one
            _emptied()
    results["ratios"] = _ratios(results["measured"])
    results["load_after"] = load()
    path.write_text(json.dumps(results, indent=1) + "\n")
    _print(results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=12, help="measured steps of each side")
    parser.add_argument("--short", action="store_true", help="the shortest steps alone")
    parser.add_argument("--base", help="one base alone, as 8B; else all")
    parser.add_argument("--weights", type=Path, help="a folder of models by name, if there is one")
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run at all?")
    parser.add_argument("--out", type=Path, help="where the result goes; else to results/")
    return parser.parse_args()


@contextmanager
def _written(base: Base, kept: Path | None) -> Iterator[Path]:
    """Write random weights in bf16, to memory where there is such a file system."""
    if kept and (kept / base.name / "config.json").exists():
        yield kept / base.name
        return
    memory = Path("/dev/shm")
    within = str(memory) if memory.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="ftray-bench-", dir=within) as made:
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        with DEVICE:
            model = LlamaForCausalLM(LlamaConfig(**base.shape))
        torch.set_default_dtype(torch.float32)
        model.save_pretrained(made)
        del model
        _emptied()
        yield Path(made)


def _packed(base: Base, folder: Path, steps: int) -> Iterator[Figures]:
    """All trials on one copy of the base; each set of them comes, is measured, and goes."""
    for tokens in base.tokens:
        sets = [(count, False) for count in (1, *base.trials)]
        for graphs, side in (("auto", "packed"), (False, "packed, launched")):
            _emptied()
            torch.compiler.reset()
            host = Host(base, folder, tokens, graphs)
            for count, mixed in [*sets, (base.trials[-1], True)] if graphs else sets:
                _emptied()
                trials = Packed(host, folder, count, tokens, mixed=mixed)
                found = _measured(trials.step, count, tokens, steps)
                trials.end()
                name = f"{side}, ranks and rates differ" if mixed else side
                yield {"base": base.name, "side": name, **found}
            del host


def _measured(step: Callable[[], float], trials: int, tokens: int, steps: int) -> Figures:
    losses, seconds = [step() for _ in range(WARM)], []
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(steps):
        _wait()
        began = time.perf_counter()
        losses.append(step())
        _wait()
        seconds.append(time.perf_counter() - began)
    middle = median(seconds)
    return {
        "trials": trials,
        "tokens": tokens,
        "step_seconds": middle,
        "slowest_step_seconds": max(seconds),
        "trial_steps_per_second": trials / middle,
        "tokens_per_second": trials * tokens / middle,
        # reserved: what captured graphs hold is free to the allocator
        "peak_gib": torch.cuda.max_memory_reserved() / 2**30 if DEVICE.type == "cuda" else None,
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _emptied() -> None:
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def _device_name() -> str:
    return torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"


def _ratios(measured: Sequence[Figures]) -> list[Figures]:
    """Trial-steps a second of each packed set, against each way of one trial at a time."""
    ratios = []
    for one in measured:
        where = {key: one[key] for key in ("base", "tokens")}
        if one["side"].startswith("packed"):
            against = {
                other["side"]: one["trial_steps_per_second"] / other["trial_steps_per_second"]
                for other in measured
                if other["trials"] == 1 and all(other[key] == where[key] for key in where)
            }
            found = {"side": one["side"], "trials": one["trials"], "against": against}
            ratios.append({**where, **found})
    return ratios


def _print(results: Figures) -> None:
    console = Console(width=140)
    console.print(", ".join(f"{k} {v}" for k, v in results["machine"].items()), style="dim")
    titles = ("trials × tokens", "step, ms", "trial-steps/s", "tokens/s", "GiB", "loss")
    table = Table("base", "side", *titles)
    for one in results["measured"]:
        table.add_row(
            one["base"],
            one["side"],
            f"{one['trials']} × {one['tokens']}",
            f"{one['step_seconds'] * 1000:.1f}",
            f"{one['trial_steps_per_second']:.1f}",
            f"{one['tokens_per_second']:,.0f}",
            "–" if one["peak_gib"] is None else f"{one['peak_gib']:.1f}",
            f"{one['first_loss']:.4f} → {one['last_loss']:.4f}",
        )
    console.print(table)
    table = Table("base", "side", "trials × tokens", "trial-steps/s, against one at a time as")
    for one in results["ratios"]:
        shown = ", ".join(f"{side}: {ratio:.2f} ×" for side, ratio in one["against"].items())
        table.add_row(one["base"], one["side"], f"{one['trials']} × {one['tokens']}", shown)
    console.print(table)


if __name__ == "__main__":
    main()
