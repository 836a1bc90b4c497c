"""Base models without their weights: what a group of workers shards before it reads anything."""

from collections import defaultdict
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from ftray.config.run import ModelConfig
from ftray.errors import ModelError
from ftray.model.base import prepared, translated
from ftray.model.weights import Weights


@dataclass(frozen=True)
class Blank:
    """A model whose parameters have shapes only (device `meta`), and the files that hold them.

    Buffers are there, on the device. `tensors` says which tensor of the files a parameter is, and
    `dtype` what all of them are to be read in.
    """

    model: PreTrainedModel
    weights: Weights
    tensors: dict[str, str]
    dtype: torch.dtype

    def copy(self) -> "Blank":
        """The same files, and a model of its own."""
        return replace(self, model=deepcopy(self.model))

    def tensor_of(self, path: str, part: str) -> str:
        """The tensor of a parameter, whether or not its layer has got our adapter, or PEFT's."""
        return self.tensors[f"{path.removesuffix('.base').removesuffix('.base_layer')}.{part}"]


@dataclass(frozen=True)
class Whole:
    """Why a model has to be loaded whole, by transformers."""

    reason: str


def blank_base(
    folder: Path, model: ModelConfig, dtype: torch.dtype, device: torch.device
) -> Blank | Whole:
    """Build the base model that `load_base` would load, without its weights.

    Only where the files hold the model's own tensors, one by one under their names: what
    transformers renames, merges, splits or unpacks while it loads, it has to load.
    """
    with translated(folder):
        config = AutoConfig.from_pretrained(
            folder, trust_remote_code=model.trust_remote_code, local_files_only=True
        )
        settings = config.to_dict()
        if settings.get("quantization_config"):
            return Whole("they are quantized")
        if settings.get("auto_map") and model.trust_remote_code:
            return Whole("the model brings its own code")
        with init_empty_weights(include_buffers=False):
            made = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=model.attention
            )
    made.tie_weights()  # what registers a parameter above makes another one of it
    if any(isinstance(step, WeightConverter) for step in get_model_conversion_mapping(made)):
        return Whole("transformers converts them")
    if made._keep_in_fp32_modules_strict and dtype != torch.float32:
        return Whole("some of them stay in fp32")
    weights = Weights(folder)
    tensors = _tensors(made, weights, folder)
    if isinstance(tensors, Whole):
        return tensors
    parts = made.state_dict()
    weights.check({tensor: tuple(parts[name].shape) for name, tensor in tensors.items()})
    _set_buffers(made, weights, tensors, device)
    if (folder / "generation_config.json").is_file():
        made.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return Blank(prepared(made.eval(), model), weights, tensors, dtype)


def _tensors(model: PreTrainedModel, weights: Weights, folder: Path) -> dict[str, str] | Whole:
    """Find each parameter, and each buffer that is saved, under one of its names."""
    names: dict[torch.Tensor, list[str]] = defaultdict(list)
    for name, part in model.state_dict(keep_vars=True).items():
        names[part].append(name)
    found = {own[0]: [name for name in own if name in weights.names] for own in names.values()}
    missing = sorted(name for name, there in found.items() if not there)
    unknown = sorted(weights.names - {name for own in names.values() for name in own})
    if missing and unknown:
        return Whole(f"they have other names: {unknown[0]}, but no {missing[0]}")
    if missing:
        raise ModelError(
            f"{folder}: no file holds {missing[0]}", "the weights are not complete: download again"
        )
    twice = next((there for there in found.values() if len(there) > 1), None)
    if twice:
        return Whole(f"{' and '.join(twice)} are one by config.json, and two in the files")
    return {name: there[0] for name, there in found.items()}


def _set_buffers(
    model: PreTrainedModel, weights: Weights, tensors: dict[str, str], device: torch.device
) -> None:
    for path, module in model.named_modules():
        for part, buffer in list(module.named_buffers(recurse=False)):
            if tensor := tensors.get(f"{path}.{part}"):
                buffer.copy_(weights.whole(tensor))
            setattr(module, part, buffer.to(device))
