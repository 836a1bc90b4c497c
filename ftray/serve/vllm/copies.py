"""Adapters as vLLM can run them: a copy, its rank rounded up by zeros, its scale multiplied in."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoConfig, AutoModelForCausalLM

from ftray.errors import ModelError
from ftray.model.adapter import PEFT_PREFIX, decoder_linears
from ftray.model.lora import linear_shape
from ftray.serve.engine.source import AdapterWeights, Shape, read_adapter
from ftray.serve.vllm.options import RANKS, padded_rank


def check_adapter_for_vllm(folder: Path, base_folder: Path, largest_rank: int = RANKS[-1]) -> None:
    """Raise ModelError, with its reason, for an adapter that vLLM cannot run: before it is served.

    A base whose architecture vLLM cannot adapt at all is not noticed here: vLLM itself says so.
    """
    _read(folder, linear_shapes(base_folder), largest_rank)


def linear_shapes(base_folder: Path, *, trust_remote_code: bool = False) -> dict[str, Shape]:
    """(in, out) of the linear layers that can have an adapter, from the base's config alone."""
    try:
        config = AutoConfig.from_pretrained(
            base_folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"{base_folder}: cannot be loaded: {error}") from None
    return {name: linear_shape(layer) for name, layer in decoder_linears(model).items()}


def write_copy(
    folder: Path, copy: Path, base: Mapping[str, Shape], largest_rank: int
) -> AdapterWeights:
    """Write the adapter as vLLM reads it and return it as it was; raises ModelError.

    All layers get one rank; columns of B and rows of A that were added are zeros, so products stay
    the same. alpha / rank, or alpha / √rank, of each layer is multiplied into B in fp32, as vLLM
    itself does after reading, and the config's scale is 1.
    """
    weights = _read(folder, base, largest_rank)
    rank = padded_rank(weights.rank)
    tensors: dict[str, Tensor] = {}
    for name, factors in weights.layers.items():
        added = rank - factors.a.shape[1]
        key = f"{PEFT_PREFIX}{name}.lora_"
        tensors[f"{key}A.weight"] = pad(factors.a, (0, added)).t().contiguous()  # [rank, in]
        tensors[f"{key}B.weight"] = pad(factors.b.t(), (0, added)).contiguous()  # [out, rank]
    _write(copy, tensors, rank)
    return weights


def write_nothing(copy: Path, base: Mapping[str, Shape]) -> None:
    """Write an adapter that changes nothing: zeros for one layer."""
    name, (inner, outer) = next(iter(base.items()))
    key = f"{PEFT_PREFIX}{name}.lora_"
    zeros = {f"{key}A.weight": torch.zeros(1, inner), f"{key}B.weight": torch.zeros(outer, 1)}
    _write(copy, zeros, rank=1)


def _write(copy: Path, tensors: Mapping[str, Tensor], rank: int) -> None:
    copy.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), copy / "adapter_model.safetensors", metadata={"format": "pt"})
    layers = {key.rpartition(".lora_")[0].rpartition(".")[2] for key in tensors}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(layers),
        "bias": "none",
    }
    (copy / "adapter_config.json").write_text(json.dumps(config))  # last: it makes it one


def _read(folder: Path, base: Mapping[str, Shape], largest_rank: int) -> AdapterWeights:
    weights = read_adapter(folder, folder.name, base, torch.float32)
    if weights.rank > largest_rank:
        hint = f"vLLM itself can run ranks up to {RANKS[-1]}: engine.vllm.largest_rank"
        what = f"the adapter's rank is {weights.rank}, this engine runs ranks up to {largest_rank}"
        raise ModelError(what, hint)
    return weights
