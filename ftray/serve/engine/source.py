"""Adapter files on disk: read, checked against the base model, and made ready to multiply with."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig as PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor

from ftray.errors import ModelError
from ftray.model.adapter import PEFT_PREFIX
from ftray.model.export import read_adapter_config, read_adapter_weights
from ftray.model.foreign import unsupported_features

Shape = tuple[int, int]


@dataclass(frozen=True)
class Factors:
    """What one adapter adds to one layer: x·a·b, the scaling already in b."""

    a: Tensor  # [in, rank]
    b: Tensor  # [rank, out]


@dataclass(frozen=True)
class AdapterWeights:
    """An adapter, ready for the layers."""

    digest: str
    layers: Mapping[str, Factors]

    @property
    def rank(self) -> int:
        """The largest of its layers."""
        return max(factors.a.shape[1] for factors in self.layers.values())

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return sum(f.a.nbytes + f.b.nbytes for f in self.layers.values())


def read_adapter(
    folder: Path, digest: str, base: Mapping[str, Shape], dtype: torch.dtype
) -> AdapterWeights:
    """Read a PEFT folder into a precision.

    `base` holds (in, out) of the layers that can have an adapter. Every tensor must belong to one
    of them, and every layer that the config targets must have its two tensors: a key that matches
    nothing would silently serve the base model (vLLM #34186).
    """
    config = read_adapter_config(folder)
    if foreign := unsupported_features(config):
        raise ModelError(f"the adapter uses what this engine cannot serve: {', '.join(foreign)}")
    pairs = _pairs(read_adapter_weights(folder))
    _check_coverage(set(pairs), set(base), config)
    layers = {}
    for name, (a, b) in pairs.items():
        _check_layer(name, a, b, base[name], _by_name(config.rank_pattern, name, config.r))
        scaled = b.t().to(torch.float32) * _scaling(config, name)
        layers[name] = Factors(
            a.t().to(dtype).contiguous(),
            scaled.to(dtype).contiguous(),
        )
    return AdapterWeights(digest, layers)


def _pairs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        layer, dot, part = key.removeprefix(PEFT_PREFIX).rpartition(".lora_")
        if not dot or part not in ("A.weight", "B.weight") or tensor.ndim != 2:
            raise ModelError(f"the adapter holds '{key}', which is no part of plain LoRA")
        layers.setdefault(layer, {})[part] = tensor
    halves = sorted(layer for layer, parts in layers.items() if len(parts) != 2)
    if halves or not layers:
        raise ModelError(f"the adapter lacks A or B of {', '.join(halves[:4]) or 'every layer'}")
    return {layer: (parts["A.weight"], parts["B.weight"]) for layer, parts in layers.items()}


def _check_coverage(found: set[str], base: set[str], config: PeftConfig) -> None:
    made_for = f"it names '{config.base_model_name_or_path}' as its base"
    if unknown := sorted(found - base):
        raise ModelError(
            f"the adapter changes '{unknown[0]}', which is no linear layer of this base", made_for
        )
    targeted = {name for name in base if check_target_module_exists(config, name)}
    if missing := sorted(targeted - found):
        raise ModelError(
            f"the adapter targets {len(targeted)} layers of this base and lacks the weights of"
            f" {len(missing)}, as {missing[0]}",
            made_for,
        )


def _check_layer(name: str, a: Tensor, b: Tensor, base: Shape, rank: int) -> None:
    if (a.shape[1], b.shape[0]) != base:
        raise ModelError(
            f"the adapter's {name} goes from {a.shape[1]} to {b.shape[0]}, the base's from"
            f" {base[0]} to {base[1]}: it was made for another model"
        )
    if not a.shape[0] == b.shape[1] == rank:
        raise ModelError(
            f"the adapter's {name} has ranks {a.shape[0]} and {b.shape[1]}, its config says {rank}"
        )
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ModelError(f"the adapter's {name} holds values that are no numbers")


def _scaling(config: PeftConfig, name: str) -> float:
    rank = _by_name(config.rank_pattern, name, config.r)
    alpha = _by_name(config.alpha_pattern, name, config.lora_alpha)
    return float(alpha) / (rank**0.5 if config.use_rslora else rank)


def _by_name(pattern: Mapping[str, int] | None, name: str, default: int) -> int:
    """PEFT's rule: the first key that is the end of the name, or matches it as an expression."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return default
