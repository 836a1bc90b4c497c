"""Keys and values of running rows: row i of a batch is slot i of one dense block a layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

CAPACITY_STEP = 128  # a block grows by so many tokens; each growth copies it


@dataclass
class Step:
    """Where the next token of each row is written; all layers read it."""

    index: Tensor  # [rows] 0, 1, …
    positions: Tensor  # [rows]
    rows: int
    length: int  # of the longest row, the new token included


class SlotCache(Cache):
    """A transformers cache in which each row has its own length.

    What attention reads is cut to the longest running row: one that has left costs nothing.
    """

    def __init__(self, layers: int, device: torch.device, dtype: torch.dtype) -> None:
        nowhere = torch.zeros(0, dtype=torch.int64, device=device)
        self.step = Step(nowhere, nowhere, 0, 0)
        self.slots, self.capacity = 0, 0
        self._dtype = dtype
        self._blocks = [_Block(self.step) for _ in range(layers)]
        super().__init__(layers=list(self._blocks))

    def resize(self, slots: int, capacity: int, lengths: Sequence[int]) -> None:
        """Make room for so many rows and tokens; what the rows hold (`lengths`) stays."""
        if (slots, capacity) == (self.slots, self.capacity):
            return
        for block in self._blocks:
            block.resize(slots, capacity, lengths)
        self.slots, self.capacity = slots, capacity

    def fill(self, slot: int, filled: Cache, row: int, length: int) -> None:
        """Copy a prompt's keys and values, row `row` of another cache, into a slot."""
        for block, pair in zip(self._blocks, _pairs(filled), strict=True):
            block.fill(slot, pair.keys[row, :, :length], pair.values[row, :, :length])

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a slot onto another one."""
        for block in self._blocks:
            block.move(source, target, length)

    def wipe(self, slot: int) -> None:
        """Forget values that are no numbers: a masked NaN would still spoil the slot's next row."""
        for block in self._blocks:
            block.wipe(slot)

    def begin(self, lengths: Sequence[int]) -> Tensor:
        """Prepare one token a row; returns the mask [rows, 1, 1, length] that attention adds."""
        device = self.step.index.device
        self.step.rows, self.step.length = len(lengths), max(lengths) + 1
        self.step.positions = torch.tensor(lengths, device=device)
        self.step.index = torch.arange(len(lengths), device=device)
        places = torch.arange(self.step.length, device=device)
        hidden = places > self.step.positions[:, None]  # [rows, length]
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=device)
        return mask.masked_fill_(hidden, -torch.inf)[:, None, None]


@dataclass(frozen=True)
class _Pair:
    keys: Tensor  # [slots, heads, capacity, dim]
    values: Tensor


class _Block(CacheLayerMixin):
    """One layer's keys and values; zeros at first: a NaN in fresh memory would pass the mask."""

    is_sliding = False

    def __init__(self, step: Step) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers
        self._step, self._shape = step, (0, 0)
        self._pair = _Pair(torch.zeros(0), torch.zeros(0))

    def update(self, key_states: Tensor, value_states: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        """Write [rows, heads, 1, dim]; return what attention reads [rows, heads, length, dim]."""
        step, pair = self._step, self._pair
        pair.keys[step.index, :, step.positions] = key_states[:, :, 0]
        pair.values[step.index, :, step.positions] = value_states[:, :, 0]
        rows, length = step.rows, step.length
        return pair.keys[:rows, :, :length], pair.values[:rows, :, :length]

    def resize(self, slots: int, capacity: int, lengths: Sequence[int]) -> None:
        self._shape = (slots, capacity)
        if self.is_initialized:
            keys = _resized(self._pair.keys, slots, capacity, lengths)
            self._pair = _Pair(keys, _resized(self._pair.values, slots, capacity, lengths))

    def fill(self, slot: int, keys: Tensor, values: Tensor) -> None:
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._pair.keys[slot, :, : keys.shape[1]] = keys
        self._pair.values[slot, :, : values.shape[1]] = values

    def move(self, source: int, target: int, length: int) -> None:
        for block in (self._pair.keys, self._pair.values):
            block[target, :, :length] = block[source, :, :length]

    def wipe(self, slot: int) -> None:
        self._pair.keys[slot] = 0
        self._pair.values[slot] = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Learn heads and dims from a row's [heads, length, dim]."""
        slots, capacity = self._shape
        heads, dims = key_states.shape[0], (key_states.shape[-1], value_states.shape[-1])
        keys = key_states.new_zeros(slots, heads, capacity, dims[0])
        self._pair = _Pair(keys, value_states.new_zeros(slots, heads, capacity, dims[1]))
        self.is_initialized = True

    def get_seq_length(self) -> int:
        return self._step.length

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._step.length, 0


def rounded(length: int) -> int:
    """The capacity that holds `length` tokens."""
    return -(-length // CAPACITY_STEP) * CAPACITY_STEP


def _resized(old: Tensor, slots: int, capacity: int, lengths: Sequence[int]) -> Tensor:
    new = old.new_zeros(slots, old.shape[1], capacity, old.shape[3])
    for slot, length in enumerate(lengths):
        new[slot, :, :length] = old[slot, :, :length]
    return new


def token_bytes(cache: Cache, tokens: int) -> int:
    """What one token of one row takes in all layers, from a cache that one row has filled."""
    return sum(pair.keys.nbytes + pair.values.nbytes for pair in _pairs(cache)) // tokens


def _pairs(cache: Cache) -> list[_Pair]:
    """What the attention layers of a filled cache hold."""
    return [
        _Pair(layer.keys, layer.values)
        for layer in cache.layers
        if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
    ]
