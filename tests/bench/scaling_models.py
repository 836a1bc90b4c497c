"""Models with random weights, as transformers saves them, made where and as fast as they fit."""

import json
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from scaling_kinds import SHAPES, on_gpus
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
_WRITERS = 8  # for each GPU: one spends its time on copies into fresh memory
_NAMES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def write_model(shape: str, folder: Path) -> None:
    """Write random weights, in bf16 for GPUs, with a tokenizer of one byte a token.

    A file for each layer, many at a time: the whole model need not fit on a GPU.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.bfloat16 if on_gpus() else torch.float32
    config = LlamaConfig(**SHAPES[shape], tie_word_embeddings=False, dtype=dtype)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    files = _by_file(model.state_dict())
    gpus = torch.cuda.device_count() if on_gpus() else 0
    devices = cycle([torch.device("cuda", gpu) for gpu in range(gpus)] or [torch.device("cpu")])
    with ThreadPoolExecutor(_WRITERS * gpus or 1) as writers:
        jobs = [
            writers.submit(_write, folder / name, tensors, dtype, torch.Generator(device))
            for (name, tensors), device in zip(files.items(), devices, strict=False)
        ]
    for job in jobs:
        job.result()
    _write_index(files, dtype, folder)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def _by_file(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by file: each layer's, each other one's."""
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in state.items():
        before, _, after = name.partition(".layers.")
        groups[after.partition(".")[0] or before][name] = tensor
    return {
        f"model-{number:05}-of-{len(groups):05}.safetensors": tensors
        for number, tensors in enumerate(groups.values(), 1)
    }


def _write(
    file: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, draw: torch.Generator
) -> None:
    """Write a safetensors file one tensor at a time; https://github.com/huggingface/safetensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * dtype.itemsize
        offsets = [start, end]
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    draw.manual_seed(int(file.name.split("-")[1]))
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            values = torch.ones(tensor.shape, dtype=dtype, device=draw.device)
            if tensor.ndim > 1:  # norms begin with ones
                values.normal_(0, LlamaConfig().initializer_range, generator=draw)
            out.write(values.cpu().view(torch.uint8).numpy().data)


def _write_index(files: Mapping[str, Mapping[str, Tensor]], dtype: torch.dtype, to: Path) -> None:
    count = sum(tensor.numel() for tensors in files.values() for tensor in tensors.values())
    index = {
        "metadata": {"total_size": count * dtype.itemsize},
        "weight_map": {name: file for file, tensors in files.items() for name in tensors},
    }
    (to / "model.safetensors.index.json").write_text(json.dumps(index))


def _tokenizer() -> PreTrainedTokenizerFast:
    special = ["<|pad|>", "<|start|>", "<|end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    named = {"pad_token": "<|pad|>", "bos_token": "<|start|>", "eos_token": "<|end|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=_TEMPLATE, **named)
