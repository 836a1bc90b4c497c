"""One optimizer step over one global batch, and the token-weighted loss of an eval set."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ftray.config.run import TrainConfig
from ftray.data.batching.collation import NO_LABEL, Batch, collate, lengthened
from ftray.data.batching.samples import Pack
from ftray.data.tokens.columns import TokenRows
from ftray.model.transfer import to_device
from ftray.train.optim import clip_gradients
from ftray.train.parallel import Place, sum_gradients, summed, total
from ftray.train.trainee import Trainee


@dataclass(frozen=True)
class StepResult:
    """What one global batch showed."""

    loss: float
    grad_norm: float
    counts: "Counts"


@dataclass(frozen=True)
class Counts:
    """What one global batch consists of, over all workers; padding is not counted."""

    tokens: int
    label_tokens: int
    samples: int


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass: packs at `positions` of the global batch."""

    batch: Batch
    positions: list[int]
    samples: int


def share(size: int, place: Place, micro: int) -> list[list[int]]:
    """Return this worker's micro-batches as positions in a global batch of `size` packs.

    Worker r of W takes positions [(a·W + r)·micro, …) in accumulation round a. Each worker gets
    the same number of micro-batches; where the last round is short some are short or empty.
    """
    stride = place.world_size * micro
    starts = range(place.rank * micro, _round_up(size, stride), stride)
    return [list(range(start, min(start + micro, size))) for start in starts]


def micro_batch(rows: TokenRows, packs: Sequence[Pack], positions: list[int]) -> MicroBatch:
    """Collate the packs at `positions` of a global batch.

    Without positions it is a copy of the first pack without labels: it adds nothing to the loss,
    and keeps this worker's collectives in step with the others'.
    """
    batch = collate(rows, [packs[position] for position in positions or [0]])
    samples = sum(len(packs[position]) for position in positions)
    return MicroBatch(batch if positions else _unlabelled(batch), positions or [0], samples)


def train_step(
    trainee: Trainee, work: Sequence[MicroBatch], place: Place, train: TrainConfig, step: int
) -> StepResult:
    """Accumulate the gradient of the global batch's mean label-token loss, sum it and clip it.

    Every token weighs the same, whichever worker or micro-batch it falls in: each local sum is
    divided by the label tokens of the whole global batch.
    """
    counts = _counts(work, place.device)
    local_loss = torch.zeros((), dtype=torch.float64, device=place.device)
    if trainee.graphs is not None:
        trainee.graphs.begin()
    for micro in work:
        seeds = [row_seed(train.seed, step, position) for position in micro.positions]
        local_loss += _learned(trainee, micro.batch, seeds, counts.label_tokens, place.device)
    parameters = list(trainee.attached.trainable.values())
    if not trainee.sums_own_gradients:
        sum_gradients(parameters)
    norm = clip_gradients(parameters, train.max_grad_norm)
    # a GPU is waited for here, once, when all that it has to do has been launched
    loss, grad_norm = torch.stack([summed(local_loss), norm.double()]).tolist()
    return StepResult(loss, grad_norm, counts)


@torch.no_grad()
def eval_loss(trainee: Trainee, work: Iterable[MicroBatch], place: Place) -> float:
    """Mean loss over all label tokens of all workers' batches, in nats."""
    local_loss, local_labels = 0.0, 0
    trainee.model.eval()
    for micro in work:
        local_loss += _loss_sum(trainee, micro.batch, place.device).item()
        local_labels += micro.batch.label_tokens
    trainee.model.train()
    loss_sum, label_tokens = total([local_loss, local_labels], place.device)
    return loss_sum / label_tokens


def row_seed(seed: int, step: int, position: int) -> int:
    """Seed of one pack's dropout masks: a hash in [0, 2⁶³) that no worker or company changes."""
    text = f"{seed} {step} {position}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def _counts(work: Sequence[MicroBatch], device: torch.device) -> Counts:
    local = [
        sum(micro.batch.tokens for micro in work),
        sum(micro.batch.label_tokens for micro in work),
        sum(micro.samples for micro in work),
    ]
    return Counts(*(round(count) for count in total([float(n) for n in local], device)))


def _unlabelled(batch: Batch) -> Batch:
    nothing = torch.full_like(batch.labels, NO_LABEL)
    return replace(batch, labels=nothing, label_tokens=0, tokens=0)


def _learned(
    trainee: Trainee, batch: Batch, seeds: list[int], label_tokens: int, device: torch.device
) -> Tensor:
    """Add the gradient of a micro-batch's share of the mean loss, and return that share. []"""
    if trainee.graphs is not None:
        return trainee.graphs.learn(lengthened(batch, trainee.row_length), seeds, label_tokens)
    trainee.attached.routing.seed_rows(seeds)
    loss = _loss_sum(trainee, batch, device) / max(1, label_tokens)
    loss.backward()
    return loss.detach()


def _loss_sum(trainee: Trainee, batch: Batch, device: torch.device) -> Tensor:
    """Labels and positions stay on the CPU, where counting them waits for nothing."""
    batch = lengthened(batch, trainee.row_length)
    ids = to_device(batch.input_ids, device)
    with trainee.precision():
        loss: Tensor = trainee.model(ids, batch.labels, batch.position_ids)
    return loss


def _round_up(number: int, of: int) -> int:
    return -(-number // of) * of
