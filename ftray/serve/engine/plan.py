"""Which rows of a forward pass take which adapter: worked out once, read by every layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_LOOP_BELOW = 3  # a batched product over so many slots costs as much as one slot alone


@dataclass(frozen=True)
class Segment:
    """Rows that take one adapter by themselves; None: all rows."""

    digest: str
    rows: slice | Tensor | None


@dataclass(frozen=True)
class Lane:
    """Rows that are multiplied with the first `slots` adapters of a stack in one product.

    `gather` [slots · per_slot] is the row in each place (any row where a place is empty), and
    `places` [rows] the place of each row; with `has_others`, the one behind the last is that of all
    rows which take nothing from this stack. Without `gather` row i is in slot i.
    """

    bucket: int
    slots: int
    gather: Tensor | None = None
    places: Tensor | None = None
    has_others: bool = False


class Plan:
    """What the layers do in the forward pass that comes next."""

    def __init__(self) -> None:
        self.segments: tuple[Segment, ...] = ()
        self.lanes: tuple[Lane, ...] = ()
        self.is_idle = True

    def set(self, segments: Sequence[Segment], lanes: Sequence[Lane] = ()) -> None:
        """Replace it."""
        self.segments, self.lanes = tuple(segments), tuple(lanes)
        self.is_idle = not (self.segments or self.lanes)


def by_segment(digests: Sequence[str | None]) -> list[Segment]:
    """Group neighbouring rows; long rows are multiplied adapter by adapter."""
    if len(set(digests)) == 1:
        return [Segment(digests[0], None)] if digests[0] is not None else []
    segments, start = [], 0
    for end in range(1, len(digests) + 1):
        if end == len(digests) or digests[end] != digests[start]:
            if (digest := digests[start]) is not None:
                segments.append(Segment(digest, slice(start, end)))
            start = end
    return segments


def by_lane(
    bucket: int, slot_rows: Mapping[int, list[int]], rows: int, device: torch.device
) -> Lane | None:
    """Put the rows of a stack's slots in one product; None where a loop over them is cheaper."""
    used = max(slot_rows) + 1
    if _LOOP_BELOW * len(slot_rows) <= used or len(slot_rows) == 1:
        return None
    if used == rows and all(slot_rows.get(slot) == [slot] for slot in range(used)):
        return Lane(bucket, used)
    per_slot = max(len(members) for members in slot_rows.values())
    gather, places = [0] * (used * per_slot), [used * per_slot] * rows
    for slot, members in slot_rows.items():
        for place, row in enumerate(members, slot * per_slot):
            gather[place], places[row] = row, place
    return Lane(
        bucket,
        used,
        torch.tensor(gather, device=device),
        torch.tensor(places, device=device),
        has_others=used * per_slot in places,
    )
