"""Rows with a cache of their own, one after another: for models that keep more than dense keys."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from ftray.model.base import output_layer
from ftray.serve.engine.batch import Joiner, LastHidden, Prefilled
from ftray.serve.engine.job import Row
from ftray.serve.engine.layers import AdapterLayers
from ftray.serve.engine.limits import EngineLimits


class WholeBatch:
    """Each row is a batch of one with whatever cache the model makes: right, and slow."""

    def __init__(
        self,
        model: PreTrainedModel,
        adapters: AdapterLayers,
        limits: EngineLimits,
        token_bytes: int,
    ) -> None:
        self.rows: list[Row] = []
        self._model, self._adapters, self._limits = model, adapters, limits
        self._last = LastHidden(output_layer(model))
        self._token_bytes = token_bytes
        self._caches: list[Cache] = []
        self._lengths: list[int] = []

    def fits(self, lengths: Sequence[int]) -> bool:
        """As if every layer kept every token: more than a window or a state takes."""
        return sum(lengths) * self._token_bytes <= self._limits.kv_bytes

    def bytes(self) -> int:
        """An upper bound, as `fits` counts."""
        return sum(self._lengths) * self._token_bytes

    def prefill(self, joiners: Sequence[Joiner], limit: int) -> Prefilled:
        """One whole prompt: not every model goes on from its state with more than a token."""
        joiner = joiners[0]
        logits, joiner.cache = self._forward(joiner.tokens, 0, joiner.row.adapter, None)
        joiner.done = len(joiner.tokens)
        return Prefilled([joiner], logits)

    def join(self, joiner: Joiner) -> None:
        """Give each row a cache of its own."""
        for row in joiner.rows:
            is_last = row is joiner.rows[-1]
            self._caches.append(joiner.filled if is_last else copy.deepcopy(joiner.filled))
            self.rows.append(row)
            self._lengths.append(joiner.done)

    def leave(self, row: Row, *, is_spoilt: bool) -> None:
        """Drop its cache."""
        place = self.rows.index(row)
        del self.rows[place], self._caches[place], self._lengths[place]

    def decode(self) -> Tensor:
        """One forward pass for each row."""
        logits = []
        for place, row in enumerate(self.rows):
            length = self._lengths[place]
            found, self._caches[place] = self._forward(
                row.tokens[-1:], length, row.adapter, self._caches[place]
            )
            logits.append(found)
            self._lengths[place] += 1
        return torch.cat(logits)

    def clear(self) -> None:
        """Start anew."""
        self.rows, self._caches, self._lengths = [], [], []

    def _forward(
        self, tokens: Sequence[int], start: int, adapter: str | None, cache: Cache | None
    ) -> tuple[Tensor, Cache]:
        device = self._model.device
        self._adapters.route_prompts([adapter])
        self._last.ends = None
        done = self._model(
            input_ids=torch.tensor([list(tokens)], device=device),
            position_ids=torch.arange(start, start + len(tokens), device=device)[None],
            past_key_values=cache,
            use_cache=True,
        )
        return done.logits[:, -1], done.past_key_values
