"""Adapters beside the layers of a base model, many in one batch; all on the stepper's thread."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftray.model.adapter import decoder_linears
from ftray.model.lora import linear_shape
from ftray.serve.engine.plan import Lane, Plan, Segment, by_lane, by_segment
from ftray.serve.engine.source import AdapterWeights, Factors, Shape

_SMALLEST_BUCKET = 8


class AdapterLayers:
    """The adapters that a model's layers hold now.

    Decoding is bound by reading weights and by the number of calls. So the adapters of running
    rows are copied into stacks, one for each power of two above their rank, and all rows of a
    stack take two batched products. On 2 cores, 8 rows of SmolLM2-135M with 8 adapters of rank 8
    took 1.10 of the base's time; a loop over segments 1.18, one product with all adapters side by
    side and a mask 1.18.
    """

    def __init__(self, model: PreTrainedModel, rows: int) -> None:
        self.plan = Plan()
        self.resident: dict[str, AdapterWeights] = {}
        self._device, self._rows = model.device, rows
        self._layers: dict[str, BankLinear] = {}
        for name, base in decoder_linears(model).items():
            self._layers[name] = BankLinear(base, self.plan)
            model.set_submodule(name, self._layers[name])
        self._slots: dict[int, list[str | None]] = {}  # by bucket

    @property
    def shapes(self) -> dict[str, Shape]:
        """(in, out) of the layers that can have an adapter."""
        return {name: linear_shape(layer.base) for name, layer in self._layers.items()}

    def publish(self, weights: AdapterWeights) -> None:
        """Let rows take this adapter."""
        self.resident[weights.digest] = weights
        for name, factors in weights.layers.items():
            moved = Factors(factors.a.to(self._device), factors.b.to(self._device))
            self._layers[name].factors[weights.digest] = moved

    def remove(self, digest: str) -> None:
        """Forget an adapter that no row takes."""
        weights = self.resident.pop(digest)
        for name in weights.layers:
            del self._layers[name].factors[digest]
        slots = self._slots.get(bucket_of(weights.rank), [])
        if digest in slots:
            slots[slots.index(digest)] = None

    def route_prompts(self, digests: Sequence[str | None]) -> None:
        """Set the adapters of a batch of prompts; equal ones should be neighbours."""
        self.plan.set(by_segment(digests))

    def route_tokens(self, digests: Sequence[str | None]) -> None:
        """Set the adapters of a batch with one token a row, in any order."""
        if len(set(digests)) == 1:
            self.plan.set(by_segment(digests))
            return
        rows: dict[str, list[int]] = {}
        for row, digest in enumerate(digests):
            if digest is not None:
                rows.setdefault(digest, []).append(row)
        buckets: dict[int, dict[str, list[int]]] = {}
        for digest, members in rows.items():
            bucket = bucket_of(self.resident[digest].rank)
            buckets.setdefault(bucket, {})[digest] = members
        segments: list[Segment] = []
        lanes: list[Lane] = []
        for bucket, wanted in buckets.items():
            slots = self._stack(bucket, wanted)
            places = {slots[digest]: members for digest, members in wanted.items()}
            lane = by_lane(bucket, places, len(digests), self._device)
            if lane is not None:
                lanes.append(lane)
                continue
            for digest, members in wanted.items():
                segments.append(Segment(digest, torch.tensor(members, device=self._device)))
        self.plan.set(segments, lanes)

    def _stack(self, bucket: int, wanted: dict[str, list[int]]) -> dict[str, int]:
        """Have the wanted adapters in slots of the bucket's stack, as far in front as possible."""
        slots = self._slots.setdefault(bucket, [None] * self._rows)
        held = {digest: slot for slot, digest in enumerate(slots) if digest in wanted}
        free = [slot for slot, digest in enumerate(slots) if digest not in wanted]
        for digest in wanted:
            if digest not in held:
                slot = free.pop(0)
                slots[slot] = digest
                held[digest] = slot
                for layer in self._layers.values():
                    layer.fill(bucket, slot, self._rows, digest)
        return {str(digest): slot for digest, slot in held.items()}


class BankLinear(nn.Module):
    """base(x) and, for each row, its own adapter's part as the plan says."""

    def __init__(self, base: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.base, self._plan = base, plan
        self.factors: dict[str, Factors] = {}
        self._stacks: dict[int, Factors] = {}  # [slots, in, rank] and [slots, rank, out]

    def forward(self, x: Tensor) -> Tensor:
        """[rows, tokens, in] → [rows, tokens, out]."""
        out: Tensor = self.base(x)
        if self._plan.is_idle:
            return out
        for segment in self._plan.segments:
            if factors := self.factors.get(segment.digest):
                _add_segment(out, x, factors, segment.rows)
        for lane in self._plan.lanes:
            if stack := self._stacks.get(lane.bucket):
                _add_lane(out.view(len(x), -1), x.view(len(x), -1), stack, lane)
        return out

    def fill(self, bucket: int, slot: int, slots: int, digest: str) -> None:
        """Copy an adapter into a slot of a stack, padded with zeros to its rank."""
        factors, stack = self.factors.get(digest), self._stacks.get(bucket)
        if stack is None:
            if factors is None:
                return
            a, b = factors.a, factors.b
            stack = self._stacks[bucket] = Factors(
                a.new_zeros(slots, a.shape[0], bucket), b.new_zeros(slots, bucket, b.shape[1])
            )
        rank = 0 if factors is None else factors.a.shape[1]
        if factors is not None:
            stack.a[slot, :, :rank] = factors.a
            stack.b[slot, :rank] = factors.b
        stack.a[slot, :, rank:] = 0
        stack.b[slot, rank:] = 0


def bucket_of(rank: int) -> int:
    """The rank that a stack has for adapters of this rank: the next power of two."""
    return max(_SMALLEST_BUCKET, 1 << (rank - 1).bit_length())


def _add_segment(out: Tensor, x: Tensor, factors: Factors, rows: slice | Tensor | None) -> None:
    if isinstance(rows, Tensor):
        low = torch.mm(x.index_select(0, rows).flatten(0, -2), factors.a)
        out.index_add_(0, rows, torch.mm(low, factors.b).view(len(rows), *out.shape[1:]))
        return
    mine, added = (x, out) if rows is None else (x[rows], out[rows])
    low = torch.mm(mine.reshape(-1, mine.shape[-1]), factors.a)
    added.view(-1, added.shape[-1]).addmm_(low, factors.b)


def _add_lane(out: Tensor, x: Tensor, stack: Factors, lane: Lane) -> None:
    """out [rows, out] += the lane's part of x [rows, in]."""
    a, b = stack.a[: lane.slots], stack.b[: lane.slots]
    if lane.gather is None or lane.places is None:
        out.unsqueeze(1).baddbmm_(torch.bmm(x.unsqueeze(1), a), b)
        return
    low = torch.bmm(x.index_select(0, lane.gather).view(lane.slots, -1, x.shape[-1]), a)
    parts = torch.bmm(low, b).view(-1, out.shape[-1])
    if lane.has_others:
        parts = nn.functional.pad(parts, (0, 0, 0, 1))
    out.add_(parts.index_select(0, lane.places))  # index_add_ takes 60 to 110 µs with two threads
