"""Random adapters that give a wrong one away, and what plain PEFT answers with each of them."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftray import registry
from ftray.model.export import load_with_peft
from ftray.model.folder import fingerprint
from ftray.registry import AdapterRecord, BaseModel

Answer = list[bytes]  # what each token stands for, up to the first special one
SHAPES: list[dict[str, Any]] = [
    {"r": 8, "target_modules": "all-linear"},
    {"r": 16, "target_modules": ["q_proj", "v_proj", "o_proj"], "use_rslora": True},
    {"r": 3, "target_modules": ["gate_proj", "up_proj", "down_proj"]},
    {"r": 8, "target_modules": "all-linear", "lora_alpha": 32},
    {"r": 12, "target_modules": ["o_proj", "k_proj", "down_proj"]},
]
_SPREAD = 0.3  # as large as tells an adapter from all others within some tokens
_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Base:
    """A base model in memory, to write adapters for and to answer with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._fingerprint = fingerprint(folder)
        self._bytes = _byte_letters()
        self._layers = {
            name: (module.in_features, module.out_features)
            for name, module in self._model.named_modules()
            if name.rpartition(".")[2] in _LINEAR
        }

    def write_adapter(self, folder: Path, seed: int, shape: dict[str, Any] | None = None) -> None:
        """Write a PEFT folder with random factors; without a shape the seed chooses one."""
        shape = shape or SHAPES[seed % len(SHAPES)]
        LoraConfig(task_type="CAUSAL_LM", **shape).save_pretrained(str(folder))
        draw = torch.Generator().manual_seed(seed)
        targets = shape["target_modules"]
        tensors = {}
        for name, (inner, outer) in self._layers.items():
            if targets == "all-linear" or name.rpartition(".")[2] in targets:
                key = f"base_model.model.{name}.lora"
                a = torch.randn(shape["r"], inner, generator=draw) / inner**0.5
                tensors[f"{key}_A.weight"] = a
                b = torch.randn(outer, shape["r"], generator=draw) * _SPREAD
                tensors[f"{key}_B.weight"] = b
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    def publish(self, root: str, name: str, folder: Path) -> str:
        """Publish an adapter's folder; returns the version's reference."""
        base = BaseModel(name=str(self.folder), revision=None, fingerprint=self._fingerprint)
        draft = AdapterRecord(
            name=name,
            kind="adapter",
            base=base,
            method="lora",
            rank=8,
            tokenizer_digest="",
            template_digest="",
        )
        return registry.publish(root, folder, draft).ref

    def answers(self, folder: Path | None, prompts: Iterable[str], tokens: int) -> list[Answer]:
        """Return greedy answers, one prompt at a time, with the adapter alone; None: without."""
        if folder is None:
            return [self._answer(self._model, prompt, tokens) for prompt in prompts]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT 0.21 and transformers 5.23 differ over a name
            tuned = load_with_peft(self._model, folder)
            found = [self._answer(tuned, prompt, tokens) for prompt in prompts]
            self._model = tuned.unload()
        return found

    def _answer(self, model: Any, prompt: str, tokens: int) -> Answer:
        asked = [{"role": "user", "content": prompt}]
        ids = self.tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, return_dict=False
        )
        with torch.no_grad():
            made = model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=tokens,
                do_sample=False,
            )
        special = set(self.tokenizer.all_special_ids)
        kept = takewhile(lambda id: id not in special, made[0, len(ids) :].tolist())
        return [self._bytes_of(id) for id in kept]

    def _bytes_of(self, id: int) -> bytes:
        [letters] = self.tokenizer.convert_ids_to_tokens([id])
        return bytes(self._bytes[letter] for letter in letters)


def differ(answers: Mapping[Any, Answer] | Sequence[Answer]) -> bool:
    """Whether every answer is another one: only then does it show who gave it."""
    found = list(answers.values()) if isinstance(answers, Mapping) else list(answers)
    return len({tuple(answer) for answer in found}) == len(found)


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others follow 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + number): byte for number, byte in enumerate(others)}
