"""What must be known of a base model beside vLLM, which holds its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig

from ftray.config.run import ModelConfig
from ftray.model.base import load_tokenizer, resolve_dtype
from ftray.serve.ends import end_tokens, named_ends
from ftray.serve.engine.grammar import Vocabulary
from ftray.serve.engine.source import Shape
from ftray.serve.vllm.copies import linear_shapes


@dataclass(frozen=True)
class VllmBase:
    """Tokens, sizes and precision of a base model."""

    tokenizer: Tokenizer
    vocabulary: Vocabulary
    size: int  # of the output layer
    ends: frozenset[int]  # tokens that end an answer
    shapes: Mapping[str, Shape]
    dtype: torch.dtype
    cache_bytes: int  # of a token's keys and values
    needs_nothing_adapter: bool
    """On CPU, vLLM (0.32, torch_ops/lora_ops.py) takes the -1 of a row without adapter for the last
    slot: beside rows with adapters it would answer with the one that lies there. Such a row is
    given an adapter of zeros."""

    def adapter_bytes(self, rank: int) -> int:
        """What the largest adapter of a rank takes."""
        return sum(a + b for a, b in self.shapes.values()) * rank * self.dtype.itemsize


def read_base(folder: Path, model: ModelConfig, device: torch.device) -> VllmBase:
    """Read the tokenizer and the configs; no weights."""
    tokenizer = load_tokenizer(folder, trust_remote_code=model.trust_remote_code)
    config = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=model.trust_remote_code
    ).get_text_config(decoder=True)
    ends = end_tokens(named_ends(folder) or (), tokenizer)  # as the embedded engine has them
    dtype = resolve_dtype(model, device)
    heads = config.num_attention_heads
    values = config.to_dict()
    width = values.get("head_dim") or config.hidden_size // heads
    stored = values.get("num_key_value_heads") or heads
    return VllmBase(
        tokenizer=tokenizer.backend_tokenizer,
        vocabulary=Vocabulary(tokenizer, config.vocab_size, ends),
        size=config.vocab_size,
        ends=ends,
        shapes=linear_shapes(folder, trust_remote_code=model.trust_remote_code),
        dtype=dtype,
        needs_nothing_adapter=device.type == "cpu",
        cache_bytes=2 * config.num_hidden_layers * stored * width * dtype.itemsize,
    )
