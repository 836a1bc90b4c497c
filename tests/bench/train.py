"""Training speed on one GPU: ftray beside transformers + PEFT, Liger and Unsloth.

    python tests/bench/train.py [--only SUITE …] [--gpus 2] [--seconds 500] [--add] [--out FILE]

Weights are random and made on the device, so nothing is downloaded. README.md here says what each
side does.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from rich.console import Console
from rich.table import Table
from train_case import in_memory

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PACKAGES = (
    *("torch", "triton", "transformers", "peft", "bitsandbytes", "liger-kernel"),
    *("trl", "unsloth", "ray"),
)
Figures = dict[str, Any]

_LLAMA = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 16384,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "tie_word_embeddings": False,
}
_QWEN = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 16384,
    "tie_word_embeddings": False,
}
_SMALL = {
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16384,
    "tie_word_embeddings": True,
}
_SMOL = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_TINY = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
SHAPES: dict[str, tuple[str, Figures]] = {
    "llama-8b": ("llama", _LLAMA),
    "qwen-7b": ("qwen2", _QWEN),
    "qwen-1.5b": ("qwen2", _SMALL),
    "smollm2-135m": ("llama", _SMOL),
    "tiny": ("llama", _TINY),
}


def main() -> None:
    options = _options()
    path = options.out or RESULTS / f"train-{datetime.now(UTC):%Y-%m-%d}.json"
    weights = options.weights or Path(tempfile.mkdtemp(prefix="ftray-bench-", dir=in_memory()))
    try:
        rows = _measured(options, weights, path)
    finally:
        if options.weights is None:
            shutil.rmtree(weights)
    _print(rows)


def _measured(options: argparse.Namespace, weights: Path, path: Path) -> list[Figures]:
    """Each side in a process of its own, its cases one after the other; so many at a time."""
    until, machine = time.time() + options.seconds, _machine()
    results: Figures = {"machine": machine, "measured": []}
    path.parent.mkdir(exist_ok=True, parents=True)
    if options.add and path.exists():
        results = json.loads(path.read_text())
        if changed := [key for key in PACKAGES if machine[key] != results["machine"][key]]:
            raise SystemExit(f"{path}: measured with another {', '.join(changed)}")
    known = {_named(one) for one in results["measured"]}
    cases = [case for name in options.only for case in SUITES[name]]
    cases = [one for one in cases if _named(one) not in known]
    cases = [one for one in cases if options.match in " ".join(_named(one))]
    cases = [{**case, **_shaped(case, weights)} for case in cases]
    if options.profile:
        cases = [{**case, "profile": _profile(case, path)} for case in cases]
    free: SimpleQueue[int] = SimpleQueue()
    for gpu in range(options.gpus):
        free.put(gpu)

    def measure(side: str) -> list[Figures]:
        gpu = free.get()
        own = [case for case in cases if case["side"] == side]
        try:
            return _side(own, path.with_suffix(f".{gpu}.jsonl"), gpu, until)
        finally:
            free.put(gpu)

    with ThreadPoolExecutor(options.gpus) as side_by_side:
        sides = dict.fromkeys(case["side"] for case in cases)
        for done in as_completed([side_by_side.submit(measure, side) for side in sides]):
            results["measured"] += done.result()
            path.write_text(json.dumps(results, indent=1) + "\n")
    return list(results["measured"])


def _side(cases: list[Figures], out: Path, gpu: int, until: float) -> list[Figures]:
    """Measure the cases of one side on one GPU; none begins after `until`."""
    given = out.with_suffix(".cases")
    given.write_text(json.dumps(cases))
    out.write_text("")  # a line for each case as it ends, should all be killed
    command = [sys.executable, str(HERE / "train_sides.py"), str(given), str(out), str(until)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    own = visible[gpu] if gpu < len(visible) and visible[gpu] else str(gpu)
    try:
        subprocess.run(
            command,
            timeout=max(0.0, until - time.time()) + _LONGEST,
            check=False,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": own},
        )
    except subprocess.TimeoutExpired:
        sys.stderr.write(f"{cases[0]['side']}: a case of it took over {_LONGEST} s\n")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    found = [{key: line[key] for key in line if key not in _OWN} for line in lines]
    given.unlink()
    out.unlink()
    return found


_OWN = ("folder", "vocab", "matrices", "profile")  # what is a side's own business
_LONGEST = 120  # seconds that the last case of a side may go on


def _named(case: Figures) -> tuple[str, ...]:
    """What tells a case from all others."""
    return case["side"], case["name"], case["shape"], str(case["length"])


def _profile(case: Figures, path: Path) -> str:
    name = "-".join(_named(case)[1:])
    return str(path.parent / f"profile-{''.join(c if c.isalnum() else '-' for c in name)}.txt")


def _shaped(case: Figures, weights: Path) -> Figures:
    """What a case has to know of its model, whose weights are written once."""
    kind, sizes = SHAPES[case["shape"]]
    folder = weights / case["shape"]
    if not (folder / "tokenizer_config.json").exists():  # written last
        made = "import sys; from train import write_weights; write_weights(*sys.argv[1:])"
        subprocess.run(
            [sys.executable, "-c", made, kind, json.dumps(sizes), str(folder)], check=True, cwd=HERE
        )
    hidden, width = sizes["hidden_size"], sizes["hidden_size"] // sizes["num_attention_heads"]
    keys = sizes["num_key_value_heads"] * width
    layer = 2 * hidden * (hidden + keys) + 3 * hidden * sizes["intermediate_size"]
    matrices = sizes["num_hidden_layers"] * layer + sizes["vocab_size"] * hidden
    return {"folder": str(folder), "vocab": sizes["vocab_size"], "matrices": matrices}


def write_weights(kind: str, sizes: str, folder: str) -> None:
    """Write a model of random weights in bf16, and a tokenizer of bytes for those who ask."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sys.path.insert(0, str(HERE.parent))
    from conftest import tiny_tokenizer

    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        config = AutoConfig.for_model(kind, **json.loads(sizes))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def _case(name: str, side: str, method: str = "lora", **changed: Any) -> Figures:
    base: Figures = {
        "name": name,
        "side": side,
        "shape": "llama-8b",
        "method": method,
        "length": 2048,
        "rows": "full",
        "batch": 16,
        "micro": 8,
        "recompute": True,
        "gib": 76,
        "warm": 2,
        "steps": 6,
    }
    return base | changed


def _packed(name: str, side: str, method: str = "lora", **changed: Any) -> Figures:
    return _case(name, side, method, rows="packed", **changed)


_SAVING = {"train.objective": "memory"}
_LONG: Figures = {"length": 8192, "batch": 4, "micro": 2}
_SMALL_ONE: Figures = {"shape": "qwen-1.5b", "batch": 16}


def _launched_and_captured(name: str, method: str = "lora", **changed: Any) -> list[Figures]:
    """The same with and without graphs, a row in each of four micro-batches unless said."""
    given: Figures = {"shape": "smollm2-135m", "length": 512, "batch": 4, "warm": 4, "steps": 12}
    own: Figures = {"train.micro_batch_size": 1} | changed.pop("changes", {})
    return [
        _case(
            f"{name}, {'captured' if graphs else 'launched'}",
            *("ftray", method),
            **given | changed,
            changes={**own, "train.graphs": graphs},
        )
        for graphs in (False, True)
    ]


def _kept(name: str, policy: str, method: str = "lora", **changed: Any) -> Figures:
    given: Figures = {"batch": 8, "warm": 1, "steps": 3} | changed
    own: Figures = {"train.micro_batch_size": min(4, given["batch"])}
    own["train.activation_checkpointing"] = policy
    return _case(f"{name}, {policy}", "ftray", method, **given, changes=own)


_ROW: Figures = {"length": 131072, "batch": 1, "warm": 0, "steps": 1}
SUITES: dict[str, list[Figures]] = {
    "quick": [
        _case(name, "ftray", method, shape="tiny", length=256, steps=2)
        for name, method in (("lora", "lora"), ("nf4", "nf4"), ("full", "full"))
    ]
    + [_case("lora", "ftray train", shape="tiny", length=256, rows="nearly full", steps=3)],
    "ours": [
        _case("lora bf16", "ftray"),
        _case("qlora nf4, memory", "ftray", "nf4", changes=_SAVING),
        _case("qlora nf4", "ftray", "nf4"),
        _case("lora fp8", "ftray", "fp8"),
        _packed("lora bf16, packed", "ftray"),
        _case("full", "ftray", "full", **_SMALL_ONE),
    ],
    "ours elsewhere": [
        _case("lora bf16", "ftray", **_LONG),
        _case("lora bf16", "ftray", shape="qwen-7b"),
        _case("lora bf16", "ftray", **_SMALL_ONE),
    ],
    "graphs": [
        *_launched_and_captured("lora bf16"),
        *_launched_and_captured("full", "full"),
        *_launched_and_captured("lora bf16, packed", rows="packed", length=2048),
        *_launched_and_captured(
            "lora bf16, 16 rows", batch=16, changes={"train.micro_batch_size": 16}
        ),
        *_launched_and_captured("lora bf16", shape="qwen-1.5b"),
        *_launched_and_captured("lora bf16", shape="qwen-1.5b", length=2048),
        *_launched_and_captured("full", "full", shape="qwen-1.5b"),
    ],
    "activations": [
        *(_kept("lora bf16", one) for one in ("none", "pointwise", "mlp", "layer", "offload")),
        *(_kept("lora bf16, one row", one, **_ROW) for one in ("offload", "layer")),
        *(_kept("qlora nf4", one, "nf4") for one in ("none", "mlp", "offload")),
    ],
    "ray": [
        _case(
            *("lora bf16, as through Ray", "ftray train"),
            rows="nearly full",
            warm=3,
            steps=8,
            # as on 80 GB, and in a run that is long enough to be compiled
            changes={"train.micro_batch_size": 4, "train.compile": True},
        ),
    ],
    "peers": [
        _case("lora, nothing recomputed", "unsloth", recompute=False, micro=4, steps=4),
        _case("lora, defaults", "unsloth", steps=4),
        _case("qlora nf4, defaults", "unsloth", "nf4", steps=4),
        _case("lora", "TRL", steps=2, warm=2),
        _case("full", "TRL", "full", **_SMALL_ONE, recompute=False, micro=4, steps=2),
        _case("lora", "transformers + PEFT", steps=2, warm=1),
    ],
    "peers elsewhere": [
        _case("lora, defaults", "unsloth", **_LONG, steps=3),
        _case("lora, defaults", "unsloth", shape="qwen-7b", steps=3),
        _case("lora, defaults", "unsloth", **_SMALL_ONE, steps=3),
        _case("lora, nothing recomputed", "unsloth", shape="qwen-7b", recompute=False, micro=4),
        _case("lora", "TRL", **_LONG, steps=2, warm=1),
        _case("lora", "TRL", shape="qwen-7b", steps=2, warm=1),
        _case("lora", "TRL", **_SMALL_ONE, steps=2, warm=1),
    ],
    "more": [
        _case("lora, nothing recomputed", "unsloth", **_LONG | {"micro": 1}, recompute=False),
        _case("lora, nothing recomputed", "unsloth", **_SMALL_ONE, recompute=False),
        _case("lora", "transformers + PEFT + Liger", steps=2, warm=1),
        _packed("lora, padded", "transformers + PEFT", steps=2, warm=1, batch=64, micro=32),
        _case("lora bf16, as through Ray", "ftray", rows="nearly full", steps=8),
        _packed("lora fp8, packed", "ftray", "fp8"),
        _case("lora fp8", "ftray", "fp8", **_LONG),
        _case("lora fp8", "ftray", "fp8", shape="qwen-7b"),
    ],
}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=SUITES, default=list(SUITES)[1:])
    parser.add_argument("--match", default="", help="only cases with this in name, shape, …")
    parser.add_argument("--out", type=Path, help="where the result goes; else to results/")
    parser.add_argument("--gpus", type=int, default=1, help="sides measured at a time, a GPU each")
    parser.add_argument("--seconds", type=float, default=7200, help="no case begins after that")
    parser.add_argument("--add", action="store_true", help="measure what the result lacks")
    parser.add_argument("--weights", type=Path, help="where models are kept; else deleted")
    parser.add_argument("--profile", action="store_true", help="a table of kernels for each case")
    return parser.parse_args()


def _machine() -> Figures:
    card = (
        subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
        if shutil.which("nvidia-smi")
        else None
    )
    return {
        "card": card.stdout.strip() if card else "none",
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "time": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _print(rows: list[Figures]) -> None:
    titles = ("side", "what", "shape × length", "micro, kept", "tokens/s", "labels/s", "MFU")
    table = Table(*titles, "GiB", "step, ms", "warm-up, s")
    for row in rows:
        start = (row["side"], row["name"], f"{row['shape']} × {row['length']}")
        if "error" in row:
            table.add_row(*start, row["error"][:100])
            continue
        table.add_row(
            *start,
            f"{row['micro']}, {row.get('activations', 'layer' if row['recompute'] else 'none')}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['label_tokens_per_second']:,.0f}",
            f"{row['mfu']:.1%}",
            "–" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}",
            f"{row['step_seconds'] * 1000:.0f}",
            f"{row['warm_up_seconds']:.0f}",
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
