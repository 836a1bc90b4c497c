"""Ways to take an optimizer step on one GPU: ftray's bare loop, and its peers, on the same rows.

`python train_sides.py CASES.json OUT.jsonl UNTIL` measures the cases one after the other in one
process, and writes a line for each as it goes; none begins after that time. Run by train.py, which
says what each side does.
"""

import gc
import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from train_case import ALPHA, CUDA, RANK, RATE, TARGETS, Figures, rates_of, rows_of, run_of, wait
from train_whole import ThroughRay, Trl, Whole


def main() -> None:
    cases = json.loads(Path(sys.argv[1]).read_text())
    if any(case["side"] == "unsloth" for case in cases):
        import unsloth  # noqa: F401  # it patches the others, so it comes first
    out, until = Path(sys.argv[2]), float(sys.argv[3])
    for case in cases:
        if time.time() > until:
            break
        try:
            measured(case, partial(_keep, out, case))
        except Exception as error:  # noqa: BLE001  # a peer that fails is a result
            traceback.print_exc()
            _keep(out, case, {"error": f"{type(error).__name__}: {error}"[:500]})
        _emptied()


def _keep(out: Path, case: Figures, found: Figures) -> None:
    with out.open("a") as file:
        file.write(json.dumps({**case, **found}) + "\n")
    shown = {key: value for key, value in found.items() if key != "losses"}
    sys.stderr.write(f"{case['side']}, {case['name']}: {shown}\n")


def measured(case: Figures, keep: Callable[[Figures], None]) -> None:
    """Warm up, then take the median of some steps; a profile takes long, so it comes last."""
    if CUDA.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, case["gib"] * 2**30 / torch.cuda.get_device_properties(0).total_memory)
        )
    began = time.perf_counter()
    side = SIDES[case["side"]](case)
    loaded = time.perf_counter() - began
    losses, seconds, tokens, labels = [], [], [], []
    if CUDA.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if isinstance(side, Whole):
        keep(side.figures(case))
        return
    first = time.perf_counter()
    for number in range(case["warm"] + case["steps"]):
        if number == case["warm"]:
            warm = time.perf_counter() - first
        began = time.perf_counter()
        loss, counted, labelled = side.step()
        wait()
        if number >= case["warm"]:
            seconds.append(time.perf_counter() - began)
            tokens.append(counted)
            labels.append(labelled)
        losses.append(loss)
    times = {"load_seconds": loaded, "warm_up_seconds": warm, "losses": losses}
    keep({**side.about, **times, **rates_of(case, seconds, tokens, labels)})
    if "profile" in case and case["side"] == "ftray":
        _profile(side.step, case["profile"])


def _profile(step: Callable[[], Any], path: str) -> None:
    """Write when the GPU had nothing to do in a step, and what its kernels took in another."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:  # which hardly slows the host
        step()
        wait()
    idle = _idle([one for one in seen.events() if one.device_type.name == "CUDA"])
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        step()
        wait()
    table = seen.key_averages().table(
        sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=110
    )
    Path(path).write_text(f"{idle}\n\n{table}")


def _idle(kernels: list[Any]) -> str:
    """How long a GPU was busy between the first kernel and the last one's end, and its waits."""
    ordered = sorted(kernels, key=lambda one: one.time_range.start)
    end, busy, waits = ordered[0].time_range.start, 0.0, []
    for one in ordered:
        start = max(end, one.time_range.start)
        waits.append((start - end, one.name))
        busy += max(0.0, one.time_range.end - start)
        end = max(end, one.time_range.end)
    span = end - ordered[0].time_range.start
    longest = sorted(waits, reverse=True)[:15]
    lines = [f"{wait / 1e3:8.2f} ms before {name[:100]}" for wait, name in longest]
    of_span = f"{busy / 1e3:.1f} of {span / 1e3:.1f} ms ({busy / span:.1%})"
    return "\n".join([f"busy {of_span}, {len(ordered)} kernels; the longest waits:", *lines])


class Ours:
    """The loop of `ftray train` without Ray: the same config, model, batches and step."""

    def __init__(self, case: Figures) -> None:
        from ftray.config.base import override
        from ftray.data.rendering.chat import Tokens
        from ftray.data.tokens.memory import MemoryRows
        from ftray.model.shape import read_shape
        from ftray.train.choice import settle
        from ftray.train.memory import GIB, Worker
        from ftray.train.optim import build_optimizer
        from ftray.train.parallel import Place
        from ftray.train.trainee import build_trainee
        from ftray.tune.packed.intake import Intake, Tables

        config = run_of(case)
        worker = Worker("gpu", 1, int(case["gib"] * GIB), "a budget")
        choice = settle(config, read_shape(Path(case["folder"])), worker)
        self._config = override(config, {"train.activation_checkpointing": choice.activations})
        self._micro, self._place = choice.micro, Place(0, 1, CUDA)
        memory = choice.memory
        self.about = {
            "micro": choice.micro,
            "recompute": choice.activations != "none",
            "activations": choice.activations,
            "graphs": choice.graphs,
            "estimate_gib": memory.allocated / GIB if memory else None,
            "reason": choice.reason,
        }
        folder = Path(case["folder"])
        self._trainee = build_trainee(
            self._config, folder, self._place, "", graphs_pay=choice.graphs
        )
        trained = self._trainee.attached.trainable.values()
        self._optimizer = build_optimizer(trained, self._config.train)
        rows = rows_of(case)
        self._rows = MemoryRows([Tokens(row, bytes([0, *[1] * (len(row) - 1)])) for row in rows])
        self._intake = Intake(Tables(self._rows, None), self._config)
        self._number = 0

    def step(self) -> tuple[float, int, int]:
        from ftray.train.step import micro_batch, share, train_step

        packs = self._intake.packs(self._number)
        positions = share(len(packs), self._place, self._micro)
        work = [micro_batch(self._rows, packs, some) for some in positions]
        train = self._config.train
        result = train_step(self._trainee, work, self._place, train, self._number)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._number += 1
        return result.loss, result.counts.tokens, result.counts.label_tokens


class Peer:
    """A peer's model under the same simple loop: micro-batches, clipping, fused AdamW."""

    def __init__(self, case: Figures) -> None:
        self._case, self._rows = case, rows_of(case)
        self._model = self._made(case)
        self._model.train()
        self._trained = [one for one in self._model.parameters() if one.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=RATE, weight_decay=0.0, fused=True)
        self._next = 0
        self.about: Figures = {"micro": case["micro"], "recompute": case["recompute"]}

    def step(self) -> tuple[float, int, int]:
        case, count, labels, losses = self._case, 0, 0, 0.0
        rounds = case["batch"] // case["micro"]
        for _ in range(rounds):
            ids, targets, mask = self._batch(case["micro"])
            given = {} if mask is None else {"attention_mask": mask}
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = self._model(input_ids=ids, labels=targets, use_cache=False, **given).loss
            (loss / rounds).backward()
            losses += loss.detach() / rounds
            real = ids.numel() if mask is None else int(mask.sum())
            count, labels = count + real, labels + real - len(ids)
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(losses), count, labels

    def _batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        rows = [self._rows[(self._next + i) % len(self._rows)] for i in range(size)]
        self._next += size
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows]).to(CUDA)
        if all(len(row) == longest for row in rows):
            return ids, ids, None
        sizes = torch.tensor([len(row) for row in rows]).to(CUDA)
        mask = (torch.arange(longest, device=CUDA) < sizes[:, None]).long()
        return ids, ids.masked_fill(mask == 0, -100), mask

    def _made(self, case: Figures) -> Any:
        raise NotImplementedError


class Peft(Peer):
    """transformers and PEFT: bf16 base, fp32 adapter under autocast; as a plain Trainer does it."""

    def _made(self, case: Figures) -> Any:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        folder = case["folder"]
        plain = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, device_map={"": 0}, attn_implementation="sdpa"
        )
        if case["recompute"]:
            plain.gradient_checkpointing_enable({"use_reentrant": False})
        wanted = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return get_peft_model(plain, wanted)


class Liger(Peft):
    """The same with Liger's kernels."""

    def _made(self, case: Figures) -> Any:
        import liger_kernel.transformers as kernels

        patch = "apply_liger_kernel_to_" + ("qwen2" if "qwen" in case["shape"] else "llama")
        getattr(kernels, patch)()
        return super()._made(case)


class Unsloth(Peer):
    """Unsloth's model with its own kernels; `recompute` is its "unsloth" (offloaded) or False."""

    def _made(self, case: Figures) -> Any:
        from unsloth import FastLanguageModel

        model, _ = FastLanguageModel.from_pretrained(
            case["folder"],
            max_seq_length=case["length"],
            dtype=torch.bfloat16,
            load_in_4bit=case["method"] == "nf4",
        )
        return FastLanguageModel.get_peft_model(
            model,
            r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=0,
            target_modules=TARGETS,
            use_gradient_checkpointing="unsloth" if case["recompute"] else False,
        )


SIDES: dict[str, Callable[[Figures], Any]] = {
    "ftray": Ours,
    "ftray train": ThroughRay,
    "transformers + PEFT": Peft,
    "transformers + PEFT + Liger": Liger,
    "unsloth": Unsloth,
    "TRL": Trl,
}


def _emptied() -> None:
    gc.collect()
    if CUDA.type == "cuda":
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
