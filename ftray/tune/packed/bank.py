"""All adapters beside one base model: who is there, and which rows of a batch are whose."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ftray.config.run import LoraConfig
from ftray.model.adapter import decoder_linears, target_names
from ftray.model.dropout import limit_of
from ftray.model.lanes import Lane, LaneLinear, Lanes, RowChances
from ftray.model.lora import linear_shape
from ftray.model.transfer import to_device
from ftray.train.capture import Hold
from ftray.tune.packed.memory import padded
from ftray.tune.packed.stack import Adapter, Stack


class Bank:
    """Adapters that come and go, in stacks of equal padded rank and equal target layers."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._routing = Lanes(model.device)
        self._like = next(model.parameters())
        self._linears = decoder_linears(model)
        self._layers = {}
        for name, base in self._linears.items():
            self._layers[name] = LaneLinear(base, name, self._routing)
            model.set_submodule(name, self._layers[name])
        self._stacks: dict[tuple[int, tuple[str, ...]], Stack] = {}
        self._made = 0
        self.before_change: Callable[[], None] = lambda: None
        """Called before adapters come or go: their memory is elsewhere then."""

    @property
    def stacks(self) -> list[Stack]:
        """The stacks, each with a member at least."""
        return list(self._stacks.values())

    def add(self, adapter: LoraConfig, seed: int) -> Adapter:
        """Take in a new adapter, with the weights that a run of this seed starts with."""
        names = tuple(target_names(self._linears, adapter))
        key = (padded(adapter.rank), names)
        if key not in self._stacks:
            sizes = {name: linear_shape(self._linears[name]) for name in names}
            self._stacks[key] = Stack(self._made, key[0], sizes, self._like)
            self._made += 1
        stack = self._stacks[key]
        with self._changing(stack):
            made = stack.add(adapter.rank, adapter.scaling, adapter.dropout)
        made.start(seed)
        return made

    def remove(self, adapter: Adapter) -> None:
        """Let an adapter go, and its memory."""
        with self._changing(adapter.stack):
            adapter.stack.remove(adapter)

    def norms(self, adapters: Sequence[Adapter]) -> list[float]:
        """Return the L2 norms of the adapters' gradients."""
        if not adapters:
            return []
        norms = torch.cat([stack.norms() for stack in self.stacks]).tolist()
        firsts, start = {}, 0
        for stack in self.stacks:
            firsts[stack.number] = start
            start += len(stack.gradients)
        return [norms[firsts[one.stack.number] + one.row] for one in adapters]

    def route(
        self, owners: Sequence[Adapter], seeds: Sequence[int], hold: Hold | None = None
    ) -> None:
        """Say whose each row of the next batch is, in the order of `Spot`.

        The seeds are of the rows' dropout. Adapters of a stack that have as many rows take their
        products together. No adapter is twice in a lane: sums over a GPU's threads would be in any
        order. `hold` has what this tells the layers lie where it lay for the last batch of this
        `kind`.
        """
        lanes = []
        for number, (start, groups) in enumerate(_grouped(owners)):
            end = start + len(groups) * len(groups[0])
            place = _within(f"lane {number}", hold or self._place)
            lanes.append(self._lane(groups, start, seeds[start:end], place))
        self._routing.set(len(owners), lanes)

    def kind(self, owners: Sequence[Adapter]) -> Hashable:
        """What batches have in common that the layers are told of in tensors of the same sizes."""
        return tuple(
            (
                groups[0][0].stack.number,
                start,
                len(groups),
                len(groups[0]),
                _has_all(groups),
                any(rows[0].dropout for rows in groups),
            )
            for start, groups in _grouped(owners)
        )

    def _lane(
        self, groups: list[list[Adapter]], start: int, seeds: Sequence[int], hold: Hold
    ) -> Lane:
        owners = [rows[0] for rows in groups]
        scaling = torch.tensor([owner.scaling for owner in owners]).view(-1, 1, 1)
        slots = None
        if not _has_all(groups):
            slots = hold("slots", torch.tensor([owner.row for owner in owners]))
        return Lane(
            stack=owners[0].stack.number,
            start=start,
            end=start + len(seeds),
            groups=len(groups),
            slots=slots,
            scaling=hold("scaling", scaling),
            dropout=_chances([owner for rows in groups for owner in rows], seeds, hold),
        )

    def _place(self, _name: str, values: Tensor) -> Tensor:
        return to_device(values, self._like.device)

    @contextmanager
    def _changing(self, stack: Stack) -> Iterator[None]:
        """Let the layers hold nothing of a stack inside the block, and what it then is after it."""
        self.before_change()
        for name in stack.sizes:
            self._layers[name].factors.pop(stack.number, None)
        try:
            yield
        finally:
            for name in stack.sizes if stack.members else ():
                self._layers[name].factors[stack.number] = stack.factors(name)
            if not stack.members:
                self._stacks = {key: one for key, one in self._stacks.items() if one is not stack}


@dataclass(frozen=True, order=True)
class Spot:
    """Where an adapter comes in a batch: beside those of equal stack and number of rows."""

    stack: int
    rows: int
    slot: int

    @classmethod
    def of(cls, owner: Adapter, rows: int) -> "Spot":
        """Of an adapter with so many rows."""
        return cls(owner.stack.number, rows, owner.row)

    @property
    def lane(self) -> tuple[int, int]:
        """What those that take their products together have in common."""
        return self.stack, self.rows


def _grouped(owners: Sequence[Adapter]) -> Iterator[tuple[int, list[list[Adapter]]]]:
    """Yield each lane's first row, and its rows' owners: a list for each adapter."""
    groups = [list(rows) for _, rows in groupby(owners, key=lambda owner: owner)]
    start = 0
    for _, alike in groupby(groups, key=lambda rows: Spot.of(rows[0], len(rows)).lane):
        members = list(alike)
        yield start, members
        start += len(members) * len(members[0])


def _has_all(groups: list[list[Adapter]]) -> bool:
    """Whether they are all members of their stack, in its order."""
    slots = [rows[0].row for rows in groups]
    return slots == list(range(len(groups[0][0].stack.members)))


def _chances(owners: list[Adapter], seeds: Sequence[int], hold: Hold) -> RowChances | None:
    if not any(owner.dropout for owner in owners):
        return None
    return RowChances(
        seeds=hold("seeds", torch.tensor(seeds)),
        limits=hold("limits", torch.tensor([limit_of(owner.dropout) for owner in owners])),
        gains=hold("gains", torch.tensor([1 / (1 - owner.dropout) for owner in owners])),
    )


def _within(place: str, hold: Hold) -> Hold:
    return lambda name, values: hold(f"{place}: {name}", values)
