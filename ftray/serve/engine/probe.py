"""Which batch a model can run in: found out from its caches and its numbers, not from its name."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ftray.errors import first_line
from ftray.model.base import length_rope
from ftray.model.int8 import Int8Linear
from ftray.serve.engine.batch import Batch
from ftray.serve.engine.dense import DenseBatch
from ftray.serve.engine.kv import SlotCache, token_bytes
from ftray.serve.engine.layers import AdapterLayers, BankLinear
from ftray.serve.engine.limits import EngineLimits
from ftray.serve.engine.whole import WholeBatch

logger = logging.getLogger(__name__)

_ROOM = 1e-3  # of the largest logit; a wrong mask makes > 1
_ROUNDED_ROOM = 2e-1  # where a last bit decides to which of 256 values something is rounded
_PROMPTS = ((5, 9, 3, 7, 2), (4, 6, 8))


@dataclass(frozen=True)
class Chosen:
    """A batch, and what a user should know of it."""

    batch: Batch
    notes: tuple[str, ...] = ()


@torch.inference_mode()
def choose_batch(model: PreTrainedModel, adapters: AdapterLayers, limits: EngineLimits) -> Chosen:
    """Take the dense batch where the model's cache and its logits allow it."""
    tokens = list(_PROMPTS[0])
    _, cache = _plain(model, tokens)
    size = max(token_bytes(cache, len(tokens)), 1)
    obstacle = _obstacle(model)
    if obstacle is None:
        return Chosen(DenseBatch(model, adapters, limits, size))
    note = f"{obstacle}: rows are computed one by one, without the speed of batches"
    logger.warning(note)
    return Chosen(WholeBatch(model, adapters, limits, size), (note,))


def _obstacle(model: PreTrainedModel) -> str | None:
    """Say why rows of different lengths cannot share a dense block; None: they can."""
    layers = DynamicCache(config=model.config).layers
    if others := sorted(
        {type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer}
    ):
        return f"the model's cache has layers of other kinds ({', '.join(others)})"
    if rope := length_rope(model):
        return f"the model's positions ({rope}) depend on the longest row of a batch"
    try:
        share, is_flat = _difference(model)
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        return f"the model does not run with a dense block of keys ({first_line(error)})"
    if is_flat:
        return "the model's layers do not see which row a token belongs to"
    if not share <= (_ROOM if is_exact(model) else _ROUNDED_ROOM):  # also when it is not a number
        return f"the model's logits differ in a batch by {share:.0e} of the largest"
    return None


def is_exact(model: PreTrainedModel) -> bool:
    """Whether a layer's output differs by no more than the order of sums does in fp32."""
    rounds = any(isinstance(layer, Int8Linear) for layer in model.modules())
    return model.dtype == torch.float32 and not rounds


class _ShapeWatch:
    """Tells whether an adapted layer was given rows and tokens in one dimension."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.is_flat = False
        layers = [layer for layer in model.modules() if isinstance(layer, BankLinear)]
        self._hooks = [layer.register_forward_pre_hook(self._look) for layer in layers]

    def _look(self, layer: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        self.is_flat |= args[0].ndim != 3 or len(args[0]) != len(_PROMPTS)

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _difference(model: PreTrainedModel) -> tuple[float, bool]:
    """Two rows of different lengths go on by a token in a block: how far are they from each alone?

    Also whether a layer with adapters was given rows and tokens in one dimension.
    """
    seen = _ShapeWatch(model)
    lengths = [len(prompt) - 1 for prompt in _PROMPTS]
    width = max(lengths)
    padded = [
        list(prompt[:-1]) + [0] * (width - length)
        for prompt, length in zip(_PROMPTS, lengths, strict=True)
    ]
    filled = DynamicCache(config=model.config)
    device = model.device
    model(
        input_ids=torch.tensor(padded, device=device),
        position_ids=torch.arange(width, device=device)[None],
        past_key_values=filled,
        use_cache=True,
    )
    cache = SlotCache(len(filled.layers), device, model.dtype)
    cache.resize(len(lengths), width + 1, [])
    for slot, length in enumerate(lengths):
        cache.fill(slot, filled, slot, length)
    mask = cache.begin(lengths)
    found = model(
        input_ids=torch.tensor([prompt[-1:] for prompt in _PROMPTS], device=device),
        position_ids=cache.step.positions[:, None],
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
    ).logits[:, -1]
    seen.stop()
    apart = max(_apart(found[row], prompt, model) for row, prompt in enumerate(_PROMPTS))
    return apart, seen.is_flat


def _apart(found: Tensor, prompt: tuple[int, ...], model: PreTrainedModel) -> float:
    alone, _ = _plain(model, list(prompt))
    return float((found - alone).abs().max() / alone.abs().max())


def _plain(model: PreTrainedModel, tokens: list[int]) -> tuple[Tensor, Cache]:
    """Logits [vocab] after one row by itself, and the cache that the model makes for it."""
    ids = torch.tensor([tokens], device=model.device)
    positions = torch.arange(len(tokens), device=model.device)[None]
    done = model(input_ids=ids, position_ids=positions, use_cache=True)
    return done.logits[0, -1], done.past_key_values
