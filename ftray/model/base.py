"""Base models: from a local folder to a model that is ready to train."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from ftray.config.run import ModelConfig
from ftray.errors import ModelError, first_line

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies beside the weights."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: the tokenizer cannot be loaded: {first_line(error)}") from None
    return tokenizer


def load_base(folder: Path, model: ModelConfig, device: torch.device) -> PreTrainedModel:
    """Load the weights onto `device` in the run's precision, ready for packed training.

    Safetensors only. A model whose attention cannot keep packed sequences apart is refused here
    where its signature shows it, and by `loss.check` where only its numbers do.
    """
    disable_progress_bar()
    dtype = resolve_dtype(model, device)
    with translated(folder):
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=model.attention,
            use_safetensors=True,
            trust_remote_code=model.trust_remote_code,
            local_files_only=True,
            device_map={"": device} if device.type == "cuda" else None,
        )
    nn.Module.to(loaded, device)
    return prepared(loaded, model)


@contextmanager
def translated(folder: Path) -> Iterator[None]:
    """Turn what transformers and safetensors say of a folder into a ModelError."""
    try:
        yield
    except SafetensorError as error:
        hint = "the file is damaged or cut off: copy or download it again"
        raise ModelError(f"{folder}: cannot be loaded: {first_line(error)}", hint) from None
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"{folder}: cannot be loaded: {first_line(error)}") from None


def prepared(made: PreTrainedModel, model: ModelConfig) -> PreTrainedModel:
    """Refuse a model that cannot take packed sequences, and set it up to be trained."""
    if "position_ids" not in inspect.signature(decoder(made).forward).parameters:
        raise ModelError(
            f"{model.name}: {type(made).__name__} takes no position ids, so packed sequences"
            " would see one another",
            "choose a decoder with rotary positions, such as Llama, Qwen, Mistral or SmolLM",
        )
    made.config.use_cache = False
    return made


def decoder(model: PreTrainedModel) -> nn.Module:
    """The model without its output layer: token ids to hidden states."""
    found: nn.Module = model.get_decoder()
    return found


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder's blocks: what is compiled, computed twice and sharded one by one."""
    return list(cast(nn.ModuleList, decoder(model).layers))


def input_layer(model: PreTrainedModel) -> nn.Embedding:
    """The layer from token ids to the first hidden states: a table of a row for each token."""
    return cast(nn.Embedding, model.get_input_embeddings())


def output_layer(model: PreTrainedModel) -> nn.Linear:
    """The layer from hidden states to logits."""
    found: nn.Linear = model.get_output_embeddings()
    return found


def length_rope(model: PreTrainedModel) -> str | None:
    """The kind of a model's rotations, if they depend on the longest row of a batch."""
    config = model.config.get_text_config(decoder=True).to_dict()
    told = repr((config.get("rope_parameters"), config.get("rope_scaling")))
    return next((kind for kind in ("dynamic", "longrope") if f"'{kind}'" in told), None)


def resolve_dtype(model: ModelConfig, device: torch.device) -> torch.dtype:
    """The precision that is computed in; auto: bf16 where the device multiplies in it."""
    if model.dtype != "auto":
        return _DTYPES[model.dtype]
    on_gpu = device.type == "cuda"
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float32
