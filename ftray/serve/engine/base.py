"""The base model of an engine, loaded and ready to serve."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftray.config.run import ModelConfig
from ftray.model.adapter import decoder_linears
from ftray.model.base import load_base, load_tokenizer
from ftray.model.nf4 import Nf4Linear
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
    folder: Path, config: ModelConfig, device: torch.device, *, nf4: bool
) -> ServedBase:
    """Load weights and tokenizer; `nf4` keeps the linear layers in 4 bits, as QLoRA trains over."""
    tokenizer = load_tokenizer(folder, trust_remote_code=config.trust_remote_code)
    model = load_base(folder, config, device)
    model.requires_grad_(False)
    model.eval()
    if nf4:
        for name, linear in decoder_linears(model).items():
            if isinstance(linear, nn.Linear):
                model.set_submodule(name, Nf4Linear(linear, double_quantization=True))
    text = model.config.get_text_config(decoder=True).to_dict()
    ends = end_tokens(named_ends(folder) or (), tokenizer)
    return ServedBase(model, tokenizer, ends, text.get("max_position_embeddings"))
