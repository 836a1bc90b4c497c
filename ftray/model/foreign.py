"""Adapters that others made with PEFT: checked against a base model before they are let in."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from transformers import AutoConfig, AutoModelForCausalLM

from ftray.config.run import LoraConfig
from ftray.errors import ModelError
from ftray.model.adapter import PEFT_PREFIX, decoder_linears
from ftray.model.export import read_adapter_config, read_adapter_weights
from ftray.model.lora import linear_shape

Shapes = dict[str, tuple[int, int]]

# What may differ from PEFT's defaults: it is either read here, or says nothing about the result.
_UNDERSTOOD = {
    "alpha_pattern",  # as rank_pattern: refused below unless all layers agree
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",  # which layers are covered is read from the tensors
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
}
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # the others change the base as well


def check_adapter(folder: Path, base_folder: Path) -> LoraConfig:
    """Say what a PEFT folder holds, as a run's adapter section; what we can't serve is refused.

    Only plain LoRA on linear layers of the base is let in: one rank, one alpha, no other weights.
    """
    config = read_adapter_config(folder)
    _check_features(config)
    shapes = {name: tuple(t.shape) for name, t in read_adapter_weights(folder).items()}
    layers = _layers(shapes)
    ranks = {a[0] for a, _ in layers.values()}
    if ranks != {config.r}:
        raise ModelError(f"{folder}: one rank for all layers is supported, found {sorted(ranks)}")
    named = config.base_model_name_or_path
    _check_layers(layers, _base_shapes(base_folder), config, f"it names '{named}' as its base")
    return LoraConfig(
        rank=config.r,
        alpha=config.lora_alpha,
        target=sorted(layers),
        dropout=config.lora_dropout,
        rslora=config.use_rslora,
    )


def unsupported_features(config: PeftConfig) -> list[str]:
    """What a PEFT config asks for beyond LoRA on linear layers, as `key=value`, by name."""
    used, plain = asdict(config), asdict(PeftConfig())
    foreign = [
        key
        for key, value in used.items()
        if value and value != plain.get(key) and key not in {*_UNDERSTOOD, "init_lora_weights"}
    ]
    if used["init_lora_weights"] not in _PLAIN_STARTS:
        foreign.append("init_lora_weights")
    return [f"{key}={used[key]!r}" for key in sorted(foreign)]


def _check_features(config: PeftConfig) -> None:
    foreign = unsupported_features(config)
    alphas: set[Any] = {config.lora_alpha, *(config.alpha_pattern or {}).values()}
    if len(alphas) > 1:
        foreign = sorted([*foreign, f"alpha_pattern={config.alpha_pattern!r}"])
    if foreign:
        raise ModelError(
            f"the adapter uses what is not supported: {', '.join(foreign)}",
            "merge it into its base with PEFT (merge_and_unload), and name that folder as the base",
        )


def _layers(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Pair A's and B's shapes by layer."""
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        layer, dot, part = name.removeprefix(PEFT_PREFIX).rpartition(".lora_")
        if not dot or part not in ("A.weight", "B.weight") or len(shape) != 2:
            raise ModelError(f"the adapter holds '{name}', which is no part of plain LoRA")
        layers.setdefault(layer, {})[part] = shape
    halves = [layer for layer, parts in layers.items() if len(parts) != 2]
    if halves or not layers:
        named = ", ".join(halves) or "any layer"
        raise ModelError(f"the adapter does not have both A and B for {named}")
    return {layer: (parts["A.weight"], parts["B.weight"]) for layer, parts in layers.items()}


def _base_shapes(base_folder: Path) -> Shapes:
    """(in, out) of the base's linear layers, from its config alone."""
    try:
        config = AutoConfig.from_pretrained(base_folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:  # also models that need their publisher's code
        raise ModelError(f"{base_folder}: cannot be loaded: {error}") from None
    return {name: linear_shape(layer) for name, layer in decoder_linears(model).items()}


def _check_layers(
    layers: dict[str, tuple[tuple[int, ...], ...]], base: Shapes, config: PeftConfig, hint: str
) -> None:
    for name, (a, b) in layers.items():
        if name not in base:
            raise ModelError(f"the adapter changes '{name}', which this base does not have", hint)
        if (a[1], b[0]) != base[name]:
            raise ModelError(
                f"the adapter's {name} goes from {a[1]} to {b[0]}, this base's from"
                f" {base[name][0]} to {base[name][1]}: it was made for another model",
                hint,
            )
    targeted = {name for name in base if check_target_module_exists(config, name)}
    if missing := sorted(targeted - set(layers)):
        raise ModelError(
            f"the adapter has weights for {len(layers)} layers of this base, but none for"
            f" {len(missing)} others that it targets, as {missing[0]}: it was made for another"
            " model",
            hint,
        )
