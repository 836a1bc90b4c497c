"""Attention in which packed documents do not see one another, without a mask of length².

On a GPU the kernel of variable lengths (FlashAttention, arXiv:2307.08691) takes all documents of a
micro-batch side by side, and works on nothing that lies between two of them. Elsewhere, and for
generation, transformers' own attention with a mask is used: it is the reference.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from ftray.model.transfer import to_device

DOCUMENTS = "ftray_documents"
_LARGEST_HEAD = 256


def takes_documents(model: PreTrainedModel, dtype: torch.dtype, longest: int) -> bool:
    """Whether the kernel takes rows of this model in `dtype`, of `longest` tokens at most."""
    if model.device.type != "cuda" or dtype != torch.bfloat16:
        return False
    settings = model.config.to_dict()
    head = settings.get("head_dim") or model.config.hidden_size // model.config.num_attention_heads
    window = settings.get("sliding_window") or longest
    is_plain = window >= longest and not settings.get("attention_dropout")
    is_new = torch.cuda.get_device_capability(model.device) >= (8, 0)
    return bool(is_new and is_plain and head % 8 == 0 and head <= _LARGEST_HEAD)


def set_attention(model: PreTrainedModel, name: str) -> str:
    """Have a model use an attention by name; returns the one that it used before."""
    before: str = model.config._attn_implementation
    if name == DOCUMENTS:
        # transformers tells an attention whatever it has; a mask is never made for ours
        AttentionInterface.register(
            DOCUMENTS, lambda layer, q, k, v, _mask, **told: (_attended(layer, q, k, v, told), None)
        )
    if name != before:
        model.set_attn_implementation(name)
    return before


def documents_of(model: PreTrainedModel, position_ids: Tensor) -> dict[str, Any]:
    """What the attention of this model has to be told about a batch [rows, length]."""
    if model.config._attn_implementation != DOCUMENTS:
        return {}
    bounds = bounds_of(position_ids)
    if bounds is None:
        return {}
    return told_of(to_device(bounds, model.device), position_ids.shape[1])


def bounds_of(position_ids: Tensor) -> Tensor | None:
    """Where the documents of a batch [rows, length] start, and where the last one ends.

    int32 [documents + 1]; None where each row is one document: attention is told nothing then.
    """
    flat = position_ids.flatten()
    starts = (flat == 0).nonzero().squeeze(1)
    if len(starts) == len(position_ids):
        return None
    return torch.cat([starts, starts.new_tensor([len(flat)])]).int()


def told_of(bounds: Tensor, length: int) -> dict[str, Any]:
    """What attention has to be told of documents in rows of `length`; bounds are on its device.

    No document is longer than a row, and to look for the longest would be to wait for the GPU.
    """
    torch._dynamo.mark_dynamic(bounds, 0)  # else each number of documents would be compiled anew
    return {"cu_seq_lens_q": bounds, "max_length_q": length}


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    most: int,
    scale: float,
) -> Tensor:
    """Causal attention within documents [starts[i], starts[i + 1]) of at most `most` tokens.

    [tokens, heads, width] → the same; fewer heads of keys and values serve several of queries.
    Without a GPU one document after the other: what the kernel has to come to.
    """
    if not query.is_cuda:
        return _one_by_one(query, key, value, starts, scale)
    out: Tensor = _documents(query, key, value, starts, most, scale)[0]
    return out


def _attended(
    layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, told: dict[str, Any]
) -> Tensor:
    """[rows, heads, length, width] → [rows, length, heads, width]."""
    rows, _, length, width = query.shape
    exact, half = value.dtype, value.dtype
    if value.is_cuda and exact == torch.float32:  # outside of autocast
        half = torch.bfloat16
    query, key, value = query.to(half), key.to(half), value.to(half)  # autocast rotates in fp32
    scale, starts = told["scaling"], told.get("cu_seq_lens_q")
    if starts is None:
        dense = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=True
        )
        return dense.transpose(1, 2).to(exact)
    query, key, value = (
        one.transpose(1, 2).reshape(rows * length, -1, width) for one in (query, key, value)
    )
    out = attend(query, key, value, starts, length, scale)
    return out.view(rows, length, -1, width).to(exact)


@torch.library.custom_op("ftray::documents", mutates_args=(), device_types="cuda")
def _documents(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, most: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention [tokens, heads, width], and the logarithms of its sums [heads, tokens]."""
    out, sums, *_ = torch.ops.aten._flash_attention_forward(
        *(query, key, value, starts, starts, most, most, 0.0, True, False),
        scale=scale,
    )
    return out, sums


@_documents.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, most: int, scale: float
) -> tuple[Tensor, Tensor]:
    sums = query.new_empty((query.shape[1], len(query)), dtype=torch.float32)
    return torch.empty_like(query), sums


@torch.library.custom_op("ftray::documents_backward", mutates_args=(), device_types="cuda")
def _documents_backward(
    of_out: Tensor, kept: list[Tensor], most: int, scale: float
) -> list[Tensor]:
    query, key, value, out, sums, starts = kept
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=query.device)
    gradients = torch.ops.aten._flash_attention_backward(
        *(of_out.contiguous(), query, key, value, out, sums, starts, starts, most, most, 0.0, True),
        *(no_dropout, query.new_empty(0)),
        scale=scale,
    )
    return list(gradients)


@_documents_backward.register_fake
def _(of_out: Tensor, kept: list[Tensor], most: int, scale: float) -> list[Tensor]:
    return [torch.empty_like(one) for one in kept[:3]]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, starts, *ctx.numbers = inputs
    ctx.save_for_backward(query, key, value, *output, starts)


def _backward(ctx: Any, of_out: Tensor, _of_sums: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _documents_backward(of_out, list(ctx.saved_tensors), *ctx.numbers)
    return *gradients, None, None, None


_documents.register_autograd(_backward, setup_context=_keep)


def _one_by_one(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, scale: float) -> Tensor:
    outs = []
    for start, end in pairwise(starts.tolist()):
        q, k, v = (one[start:end].transpose(0, 1)[None] for one in (query, key, value))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)
