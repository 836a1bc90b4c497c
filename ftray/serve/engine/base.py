"""The base model of an engine, loaded and ready to serve."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftray.config.run import ModelConfig
from ftray.config.serve import BasePrecision
from ftray.model.adapter import decoder_linears
from ftray.model.base import load_base, load_tokenizer, output_layer
from ftray.model.int8 import Int8Linear, fits_int8
from ftray.model.nf4 import Nf4Linear
from ftray.model.packed import PackedLinear, can_pack
from ftray.serve.ends import end_tokens, named_ends


@dataclass(frozen=True)
class ServedBase:
    """A model in eval mode with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]  # tokens that end an answer
    max_length: int | None

    @property
    def vocabulary(self) -> int:
        """Size of the output layer, which may be padded beyond the tokenizer's."""
        return int(self.model.get_output_embeddings().weight.shape[0])


def load_served(
    folder: Path, config: ModelConfig, device: torch.device, precision: BasePrecision
) -> ServedBase:
    """Load weights and tokenizer; with less than the same precision linear layers are rounded."""
    tokenizer = load_tokenizer(folder, trust_remote_code=config.trust_remote_code)
    model = load_base(folder, config, device)
    model.requires_grad_(False)
    model.eval()
    for name, linear in decoder_linears(model).items():
        if isinstance(linear, nn.Linear):
            model.set_submodule(name, _served(linear, precision))
    head = output_layer(model)
    if can_pack(head):
        model.set_output_embeddings(PackedLinear(head))
    text = model.config.get_text_config(decoder=True).to_dict()
    ends = end_tokens(named_ends(folder) or (), tokenizer)
    return ServedBase(model, tokenizer, ends, text.get("max_position_embeddings"))


def _served(linear: nn.Linear, precision: BasePrecision) -> nn.Module:
    match precision:
        case "nf4":
            return Nf4Linear(linear, double_quantization=True)
        case "int8" if fits_int8(linear):
            return Int8Linear(linear)
        case _:
            return PackedLinear(linear) if can_pack(linear) else linear
