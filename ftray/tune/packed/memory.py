"""How much a host holds: estimated from shapes alone (no torch), to be corrected by measurement."""

from collections.abc import Sequence
from dataclasses import replace

from ftray.config.base import override
from ftray.config.run import RunConfig
from ftray.model.shape import ModelShape
from ftray.train.launches import joint_launch_seconds, product_seconds
from ftray.train.memory import Worker, bytes_per_element, compiles, estimate, trainable
from ftray.tune.packed.trial import Capacity, adapter_of

_FP32 = 4
_MOST_TOKENS = {"cpu": 2048, "gpu": 16384}  # more bring no more speed


def slot_bytes(config: RunConfig, shape: ModelShape, worker: Worker) -> int:
    """Bytes that a trial holds between steps: weights, gradients, moments, and what products take.

    All are padded to the rank of the trial's stack.
    """
    rank = padded(adapter_of(config).rank)
    numbers = trainable(override(config, {"adapter.rank": rank}), shape)
    element = bytes_per_element(config, worker)
    return numbers * (4 * _FP32 + (element if element < _FP32 else 0))


def host_bytes(config: RunConfig, shape: ModelShape, worker: Worker, tokens: int) -> int:
    """Bytes of a host besides its slots, in the middle of a joint micro-batch."""
    micro = -(-tokens // config.data.max_length)
    alone = estimate(config, shape, worker, micro)
    own = alone.adapter + alone.gradients + alone.optimizer + alone.snapshot + alone.graphs
    step = sum(alone.parts.values()) - own + graph_bytes(config, shape, worker, tokens)
    return max(step, alone.loading + alone.overhead)


def graph_bytes(config: RunConfig, shape: ModelShape, worker: Worker, tokens: int) -> int:
    """Bytes that recordings of joint micro-batches hold beside those that are launched.

    They take each other's place: it is the activations of the largest one that is replayed.
    """
    train, length = config.train, config.data.max_length
    goes = worker.device == "gpu" and train.graphs is not False
    if not goes or joint_obstacle(config) or not compiles(train, on_gpu=True):
        return 0
    most = tokens // length
    if train.graphs == "auto":
        launches = joint_launch_seconds(shape)
        most = min(most, int(launches / product_seconds(config, shape, length)))
    return estimate(config, shape, worker, most).activations if most else 0


def joint_obstacle(config: RunConfig) -> str:
    """Which setting keeps joint micro-batches from being captured; empty if none does."""
    if config.train.activation_checkpointing == "layer":  # checkpoints ask generators their state
        return "layers are computed twice"
    return config.graphs_obstacle


def plan_capacity(
    base: RunConfig,
    trials: Sequence[RunConfig],
    most: int,
    shape: ModelShape | None,
    worker: Worker,
) -> Capacity:
    """Choose how many trials like these a host holds, `most` at most, and its joint micro-batches.

    Micro-batches are as large as they help, and smaller where that many then fit; never smaller
    than a pack. Recordings of them have to go before trials have to wait. No slots: the base does
    not fit, or not with the largest trial.
    """
    longest = max((trial.data.max_length for trial in trials), default=base.data.max_length)
    largest_batch, memory = max(_MOST_TOKENS[worker.device], longest), worker.memory
    if shape is None or memory is None:
        return Capacity(most, largest_batch)
    largest = max((slot_bytes(trial, shape, worker) for trial in trials), default=1)

    def fitting(config: RunConfig) -> Capacity:
        tokens = largest_batch
        while True:
            room = memory - host_bytes(config, shape, worker, tokens)
            slots = min(most, max(0, room // largest))
            if slots == most or tokens == longest:
                return Capacity(slots, tokens, memory)
            tokens = max(longest, tokens // 2)

    found = fitting(base)
    if found.slots == most or base.train.graphs != "auto":
        return found
    without = replace(fitting(override(base, {"train.graphs": False})), graphs=False)
    return without if without.slots > found.slots else found


def padded(rank: int) -> int:
    """The rank of the stack that an adapter of this rank is in: a power of two."""
    return max(_SMALLEST_RANK, 1 << (rank - 1).bit_length())


_SMALLEST_RANK = 8
