"""Adapters as PEFT folders and models as transformers folders: written, verified, read again."""

import json
import warnings
from dataclasses import dataclass, replace
from functools import partial
from math import isclose
from pathlib import Path

import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftray.config.run import LoraConfig, ModelConfig
from ftray.errors import ModelError, TrainError
from ftray.model.adapter import (
    PEFT_PREFIX,
    Attached,
    adapter_state,
    decoder_linears,
    load_adapter_state,
    lora_layers,
)
from ftray.model.base import load_base, output_layer
from ftray.model.blank import Blank
from ftray.model.nf4 import Nf4Linear, rounded
from ftray.model.stream import standing_in, streamed

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

# Largest difference of a logit, as a share of the largest: room for another order of sums. In bf16
# 30 layers of rounding make 3e-2 (measured), so weights are compared one by one as well.
_ROOM = {torch.float32: 1e-4, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class BaseName:
    """What an adapter's config says about the model it belongs to."""

    name: str
    revision: str | None = None


def export_adapter(attached: Attached, adapter: LoraConfig, base: BaseName, folder: Path) -> None:
    """Write a folder that plain PEFT loads, with weights in fp32.

    Of a sharded model all workers must call together, each with a folder of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: values.cpu() for name, values in adapter_state(attached.model).items()}
    save_file(state, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = PeftConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base.name,
        revision=base.revision,
        inference_mode=True,
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # PEFT says int, and multiplies floats
        use_rslora=adapter.rslora,
        lora_dropout=adapter.dropout,
        target_modules=peft_targets(attached.model),
        bias="none",
    )
    config.save_pretrained(str(folder))
    _sort_targets(folder / ADAPTER_CONFIG)


def _sort_targets(path: Path) -> None:
    """PEFT writes a set in its order, another one in each process; the same adapter, same file."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree["target_modules"].sort()
    path.write_text(json.dumps(tree, indent=2, sort_keys=True), encoding="utf-8")


def peft_targets(model: PreTrainedModel) -> list[str]:
    """The shortest list of names by which PEFT finds the wrapped layers and no others."""
    wrapped = {layer.name for layer in lora_layers(model)}
    leaves = {name.rpartition(".")[2] for name in wrapped}
    others = {name.removesuffix(".base") for name in decoder_linears(model)} - wrapped
    unique = not any(name.rpartition(".")[2] in leaves for name in others)
    return sorted(leaves if unique else wrapped)


def load_adapter(attached: Attached, adapter: LoraConfig, folder: Path) -> None:
    """Set the attached adapter to the one in a PEFT folder of the same rank, scaling and layers."""
    found = read_adapter_config(folder)
    pairs = (
        ("rank", found.r, adapter.rank),
        ("alpha", float(found.lora_alpha), adapter.alpha),
        ("rslora", found.use_rslora, adapter.rslora),
    )
    for key, theirs, ours in pairs:
        if theirs != ours:
            raise ModelError(
                f"the adapter to start from has {key} {theirs}, the run says adapter.{key}={ours}",
                f"set adapter.{key}={theirs}",
            )
    load_adapter_state(attached.model, read_adapter_weights(folder))


def read_adapter_config(folder: Path) -> PeftConfig:
    """Read a PEFT folder's config; anything but LoRA is an error."""
    try:
        kind = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["peft_type"]
        found = PeftConfig.from_pretrained(str(folder)) if kind == "LORA" else None
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelError(f"{folder}: no usable {ADAPTER_CONFIG}: {reason or error}") from None
    if not isinstance(found, PeftConfig):
        raise ModelError(f"{folder}: the adapter's type is {kind}, expected LORA")
    return found


def read_adapter_weights(folder: Path) -> dict[str, Tensor]:
    """Read a PEFT folder's tensors."""
    try:
        return load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{folder}: no usable {ADAPTER_WEIGHTS}: {error}",
            "only safetensors are read; other formats can run code",
        ) from None


def verify_adapter(attached: Attached, folder: Path, base_folder: Path, model: ModelConfig) -> None:
    """Load the exported adapter with plain PEFT on a fresh base: same layers, weights and logits.

    Under QLoRA the fresh base gets the dequantized weights: so the comparison is about the adapter
    and as tight as for LoRA, and it is not about what 4 bits lose.
    """
    fresh = load_base(base_folder, model, attached.model.device)
    _copy_dequantized(attached.model, fresh)
    load_with_peft(fresh, folder)
    _compare_layers(fresh, attached.model, folder)
    compare(logits(fresh), logits(attached.model), f"the adapter in {folder}")


def verify_streamed(attached: Attached, blank: Blank, folder: Path) -> None:
    """Do the same without any whole model: of the base there is `blank`, which stays as it is."""
    fresh, device = blank.copy(), attached.routing.row_seeds.device
    with standing_in(fresh.model, device):
        load_with_peft(fresh.model, folder)
    _compare_layers(fresh.model, attached.model, folder)
    packed = {
        f"{name.removesuffix('.base')}.weight": partial(
            rounded, double_quantization=layer.double_quantization
        )
        for name, layer in decoder_linears(attached.model).items()
        if isinstance(layer, Nf4Linear)
    }
    with streamed(replace(blank, model=attached.model), device):
        expected = logits(attached.model)
    with streamed(fresh, device, packed):
        compare(logits(fresh.model), expected, f"the adapter in {folder}")


def load_with_peft(base: PreTrainedModel, folder: Path) -> PeftModel:
    """Wrap the layers of `base` in place, as anybody with PEFT would."""
    with warnings.catch_warnings():
        # PEFT 0.21 reads a property that transformers 5.23 renamed
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return PeftModel.from_pretrained(base, str(folder))


def export_full(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write all weights, config and tokenizer as a folder that transformers loads."""
    model.config.use_cache = True  # what training switched off would slow down whoever loads it
    try:
        model.save_pretrained(folder)
    finally:
        model.config.use_cache = False
    tokenizer.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors makes files that only their owner can read


def verify_full(trained: PreTrainedModel, folder: Path, model: ModelConfig) -> None:
    """Load an exported model again, in the precision that it was trained in; compare logits."""
    dtype = "bfloat16" if trained.dtype == torch.bfloat16 else "float32"
    fresh = load_base(folder, model.model_copy(update={"dtype": dtype}), trained.device)
    compare(logits(fresh), logits(trained), f"the model in {folder}")


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    """Logits [16, vocab] of a fixed sequence, in eval mode."""
    was_training = model.training
    model.eval()
    vocabulary = len(output_layer(model).weight)
    ids = torch.arange(11, 11 + 37 * 16, 37, device=model.device)[None] % vocabulary  # [1, 16]
    found: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    model.train(was_training)
    return found


def compare(found: Tensor, expected: Tensor, what: str) -> float:
    """Return the largest difference of a logit as a share of the largest; too large is an error."""
    share = float((found - expected).abs().max() / expected.abs().max())
    room = _ROOM[expected.dtype]
    if not share <= room:  # also when it is not a number
        raise TrainError(
            f"{what} gives other logits than the model it was made from: they differ by {share:.1e}"
            f" of the largest logit, {room:.0e} is rounding"
        )
    return share


@torch.no_grad()
def _copy_dequantized(trained: PreTrainedModel, fresh: PreTrainedModel) -> None:
    for name, layer in decoder_linears(trained).items():
        if isinstance(layer, Nf4Linear):
            weight = fresh.get_submodule(name.removesuffix(".base")).get_parameter("weight")
            weight.copy_(layer.dequantized(weight.dtype))


def _compare_layers(fresh: PreTrainedModel, trained: PreTrainedModel, folder: Path) -> None:
    """Compare what PEFT took from the folder with what was trained, bit for bit."""
    modules = fresh.named_modules()
    theirs = {name: module for name, module in modules if isinstance(module, LoraLayer)}
    ours = {layer.name: layer for layer in lora_layers(trained)}
    state, wrong = adapter_state(trained), sorted(theirs.keys() ^ ours.keys())
    for name in theirs.keys() & ours.keys():
        layer, prefix = theirs[name], f"{PEFT_PREFIX}{name}"
        same = (
            torch.equal(
                layer.lora_A["default"].get_parameter("weight"), state[f"{prefix}.lora_A.weight"]
            )
            and torch.equal(
                layer.lora_B["default"].get_parameter("weight"), state[f"{prefix}.lora_B.weight"]
            )
            and isclose(layer.scaling["default"], ours[name].slots[0].scaling)
        )
        wrong += [] if same else [name]
    if wrong:
        raise TrainError(f"the adapter in {folder} is not what was trained: {', '.join(wrong[:8])}")
