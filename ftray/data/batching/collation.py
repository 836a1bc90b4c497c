"""Packs to the tensors of a micro-batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ftray.data.batching.samples import Pack
from ftray.data.tokens.columns import TokenRows

NO_LABEL = -100  # torch's cross-entropy ignores it


@dataclass(frozen=True)
class Batch:
    """Tensors of one micro-batch, each [packs, longest] int64.

    `labels[b, t]` is the token that position t has to predict, NO_LABEL where none is learned: it
    is shifted already. Position ids restart at each sample and at the padding, which separates them
    in attention without a mask. `tokens` counts without padding.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    label_tokens: int
    tokens: int


def collate(rows: TokenRows, packs: Sequence[Pack]) -> Batch:
    """Lay packs side by side, padded to the longest of them."""
    longest = max(sum(sample.length for sample in pack) for pack in packs)
    input_ids = np.zeros((len(packs), longest), np.int64)
    labels = np.full((len(packs), longest), NO_LABEL, np.int64)
    position_ids = np.zeros((len(packs), longest), np.int64)
    tokens = 0
    for number, pack in enumerate(packs):
        start = 0
        for key, first, length, _ in pack:
            end = start + length
            ids = rows.ids(key)[first : first + length]
            trained = rows.trained(key)[first : first + length]
            input_ids[number, start:end] = ids
            labels[number, start : end - 1] = np.where(trained[1:], ids[1:], NO_LABEL)
            position_ids[number, start:end] = np.arange(length)
            start = end
        position_ids[number, start:] = np.arange(longest - start)
        tokens += start
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(labels),
        torch.from_numpy(position_ids),
        label_tokens=int(np.count_nonzero(labels != NO_LABEL)),
        tokens=tokens,
    )


def lengthened(batch: Batch, length: int | None) -> Batch:
    """Pad rows to a length. The padding goes on with the last document, which sees none of it:
    so a row of one document stays one, and needs no kernel that keeps two apart.
    """
    missing = 0 if length is None else length - batch.input_ids.shape[1]
    if missing <= 0:
        return batch
    positions = batch.position_ids[:, -1:] + torch.arange(1, missing + 1)
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, (0, missing)),
        labels=F.pad(batch.labels, (0, missing), value=NO_LABEL),
        position_ids=torch.cat([batch.position_ids, positions], 1),
    )
