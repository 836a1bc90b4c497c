"""Rows with keys and values in one dense block: for models with plain full attention."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ftray.model.base import output_layer
from ftray.serve.engine.batch import Joiner, LastHidden, Prefilled, pick
from ftray.serve.engine.job import Row
from ftray.serve.engine.kv import SlotCache, rounded
from ftray.serve.engine.layers import AdapterLayers
from ftray.serve.engine.limits import EngineLimits


class DenseBatch:
    """Row i runs in slot i; the last one moves into the place of a row that leaves."""

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
        self._lengths: list[int] = []  # tokens in each slot
        self._joining = 0
        self._cache = self._new_cache()

    def fits(self, lengths: Sequence[int]) -> bool:
        """Whether a block of so many rows and the longest of these lengths is in the budget."""
        block = len(lengths) * rounded(max(lengths)) * self._token_bytes
        return block <= self._limits.kv_bytes

    def bytes(self) -> int:
        """Memory of the block, and of prompts on their way into it."""
        return (self._cache.slots * self._cache.capacity + self._joining) * self._token_bytes

    def prefill(self, joiners: Sequence[Joiner], limit: int) -> Prefilled:
        """Compute prompts side by side, padded on the right: causal attention hides the padding."""
        chosen = sorted(pick(joiners, limit), key=lambda joiner: joiner.row.adapter or "")
        takes = [min(joiner.left, limit) for joiner in chosen]
        start, width = chosen[0].done, max(takes)
        ids = [j.tokens[j.done : j.done + take] for j, take in zip(chosen, takes, strict=True)]
        padded = [row + [0] * (width - len(row)) for row in ids]
        device = self._model.device
        cache = chosen[0].cache
        if cache is None:
            cache = DynamicCache(config=self._model.config)
        self._adapters.route_prompts([joiner.row.adapter for joiner in chosen])
        self._last.ends = torch.tensor([take - 1 for take in takes], device=device)
        logits = self._model(
            input_ids=torch.tensor(padded, device=device),
            position_ids=torch.arange(start, start + width, device=device)[None],
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]  # [joiners, vocab]
        for place, (joiner, take) in enumerate(zip(chosen, takes, strict=True)):
            joiner.cache, joiner.place = cache, place
            joiner.done += take
        self._joining = sum(joiner.done for joiner in joiners)
        if chosen[0].left:
            return Prefilled()
        return Prefilled(chosen, logits)

    def join(self, joiner: Joiner) -> None:
        """Copy the prompt's keys and values into a slot for each of its rows."""
        length, count = joiner.done, len(joiner.rows)
        self._resize(len(self.rows) + count, max([length, *self._lengths]) + 1)
        for row in joiner.rows:
            self._cache.fill(len(self.rows), joiner.filled, joiner.place, length)
            self.rows.append(row)
            self._lengths.append(length)
        self._joining = max(0, self._joining - length)

    def leave(self, row: Row, *, is_spoilt: bool) -> None:
        """Move the last row into its place; without rows nothing is kept."""
        slot, last = self.rows.index(row), len(self.rows) - 1
        if is_spoilt:
            self._cache.wipe(slot)
        if slot != last:
            self._cache.move(last, slot, self._lengths[last])
            self.rows[slot], self._lengths[slot] = self.rows[last], self._lengths[last]
        self.rows.pop()
        self._lengths.pop()
        if not self.rows:
            self._cache = self._new_cache()

    def decode(self) -> Tensor:
        """One forward pass for all rows."""
        self._resize(len(self.rows), max(self._lengths) + 1)
        device = self._model.device
        mask = self._cache.begin(self._lengths)
        self._adapters.route_tokens([row.adapter for row in self.rows])
        self._last.ends = None
        logits: Tensor = self._model(
            input_ids=torch.tensor([row.tokens[-1:] for row in self.rows], device=device),
            position_ids=self._cache.step.positions[:, None],
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]  # [rows, vocab]
        self._lengths = [length + 1 for length in self._lengths]
        return logits

    def clear(self) -> None:
        """Start anew, with nothing of what was there."""
        self.rows, self._lengths, self._joining = [], [], 0
        self._cache = self._new_cache()

    def _resize(self, rows: int, length: int) -> None:
        """Grow by doubling rows where the budget allows; shrink when most of it lies idle."""
        capacity, slots = rounded(length), self._cache.slots
        if rows > slots:
            slots = min(1 << (rows - 1).bit_length(), self._limits.rows)
        if capacity < self._cache.capacity < 4 * capacity:
            capacity = self._cache.capacity
        if slots * capacity * self._token_bytes > self._limits.kv_bytes:
            slots, capacity = max(rows, 1), rounded(length)
        self._cache.resize(slots, capacity, self._lengths)

    def _new_cache(self) -> SlotCache:
        config = self._model.config.get_text_config(decoder=True)
        return SlotCache(config.num_hidden_layers, self._model.device, self._model.dtype)
