"""The base model of an engine, loaded and ready to serve."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jinja2 import TemplateError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftray.config.run import ModelConfig
from ftray.model.adapter import decoder_linears
from ftray.model.base import load_base, load_tokenizer
from ftray.model.nf4 import Nf4Linear

_ANSWER = "answer"


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
    ends = end_tokens(model.generation_config.eos_token_id, tokenizer)
    return ServedBase(model, tokenizer, ends, text.get("max_position_embeddings"))


def end_tokens(named: int | list[int] | None, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """What a generation config names, the tokenizer's end, and what ends a turn of a chat."""
    found = set(_turn_end(tokenizer)) if tokenizer.chat_template else set()
    for ids in (named, tokenizer.eos_token_id):
        if isinstance(ids, int):
            found.add(ids)
        elif ids is not None:
            found.update(ids)
    return frozenset(found)


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special token right after an assistant's words, as the chat template writes them."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except (TemplateError, TypeError, ValueError, KeyError):  # a template may refuse any turns
        return []
    rest = text.rpartition(_ANSWER)[2].lstrip()
    special = sorted(tokenizer.all_special_tokens, key=len, reverse=True)
    token = next((token for token in special if token and rest.startswith(token)), None)
    return [] if token is None else [tokenizer.get_vocab()[token]]
