"""The sizes of a base model, read without torch: for plans, memory estimates and FLOP counts."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftray.config.paths import is_path
from ftray.config.run import BUILTIN_MODEL

Linear = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder; `linear` maps the linear layers of one block to (in, out)."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    linear: Linear

    @property
    def parameters(self) -> int:
        """All weights: matrices, embeddings and two norms a block; biases are not counted."""
        matrices = self.layers * sum(i * o for i, o in self.linear.values())
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return matrices + embeddings + (2 * self.layers + 1) * self.hidden


def shape_of(name: str, revision: str | None, root: str) -> ModelShape | None:
    """Look a model's shape up on this machine; None when it isn't here or not of a known kind.

    `root` is not needed for that: the built-in model's shape is known before it is unpacked.
    """
    if name == BUILTIN_MODEL:
        return BUILTIN_SHAPE
    if is_path(name):
        folder: Path | None = Path(name).expanduser()
    else:
        folder = _cached_snapshot(name, revision)
    return read_shape(folder) if folder else None


def read_shape(folder: Path) -> ModelShape | None:
    """Read sizes from a model folder's config.json, and the layers from its weights' headers."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    config = config.get("text_config", config)
    if not all(isinstance(config.get(key), int) for key in _NEEDED):
        return None
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or hidden // heads
    kv_heads = config.get("num_key_value_heads") or heads
    sizes = (hidden, config["intermediate_size"], heads * head_dim, kv_heads * head_dim)
    return ModelShape(
        layers=config["num_hidden_layers"],
        hidden=hidden,
        intermediate=config["intermediate_size"],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", config.get("model_type") in _TIED)),
        linear=_linear_in_files(folder) or _llama_linear(*sizes),
    )


_NEEDED = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
)
_TIED = ("gemma", "gemma2", "gemma3_text")  # families whose config leaves the default out
_LARGEST_HEADER = 100 * 2**20  # as the safetensors format allows


def _linear_in_files(folder: Path) -> Linear:
    """The matrices of block 0, from safetensors headers: 8 bytes of length, then JSON."""
    linear = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in _header(file).items():
            block = re.search(r"layers\.0\.(.+)\.weight$", name)
            if block and len(tensor["shape"]) == 2:
                out, into = tensor["shape"]
                linear[block[1]] = (into, out)
    return linear


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(min(length, _LARGEST_HEADER)))
    return header


def _llama_linear(hidden: int, intermediate: int, query: int, key: int) -> Linear:
    return {
        "self_attn.q_proj": (hidden, query),
        "self_attn.k_proj": (hidden, key),
        "self_attn.v_proj": (hidden, key),
        "self_attn.o_proj": (query, hidden),
        "mlp.gate_proj": (hidden, intermediate),
        "mlp.up_proj": (hidden, intermediate),
        "mlp.down_proj": (intermediate, hidden),
    }


def flops_per_token(shape: ModelShape, length: int, *, frozen_base: bool) -> float:
    """FLOPs of forward and backward for one token in a row of `length` tokens.

    2N forward, 2N for the gradients of activations, and 2N for those of the weights unless the
    base is frozen (Kaplan et al. 2020, arXiv:2001.08361, section 2.1; N counts the matrices that
    a token is multiplied with, so the output embedding but not the input's). Attention adds
    2·2·length·heads·head_dim a layer forward, halved by causality, and twice that backward.
    """
    matrices = shape.layers * sum(i * o for i, o in shape.linear.values())
    matrices += shape.vocab * shape.hidden
    attention = 2.0 * length * shape.heads * shape.head_dim * shape.layers
    return matrices * (4.0 if frozen_base else 6.0) + 3.0 * attention


BUILTIN_SHAPE = ModelShape(
    layers=30,
    hidden=576,
    intermediate=1536,
    heads=9,
    kv_heads=3,
    head_dim=64,
    vocab=49152,
    tied=True,
    linear=_llama_linear(576, 1536, 576, 192),
)


def _cached_snapshot(name: str, revision: str | None) -> Path | None:
    """The folder of a hub model in Hugging Face's cache, found by that cache's layout.

    huggingface_hub knows it too, but takes half a second to import.
    """
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    model, wanted = cache / f"models--{name.replace('/', '--')}", revision or "main"
    ref = model / "refs" / wanted
    commit = ref.read_text().strip() if ref.is_file() else wanted
    snapshot = model / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None
