"""What `auto` settles for: micro-batch and recomputation, from shapes and memory (no torch)."""

from dataclasses import dataclass, replace

from ftray.config.run import RunConfig
from ftray.model.shape import ModelShape
from ftray.train.launches import graphs_pay
from ftray.train.memory import GIB, Memory, Worker, estimate


@dataclass(frozen=True)
class Choice:
    """How a worker goes through its share of a global batch, and why."""

    micro: int
    recompute: bool
    memory: Memory | None
    reason: str
    graphs: bool = False


def settle(config: RunConfig, shape: ModelShape | None, worker: Worker) -> Choice:
    """Resolve what is `auto` in `train`: micro-batch, recomputation, then graphs, if they fit."""
    choice = _settled(config, shape, worker)
    if shape is None or worker.memory is None or worker.device == "cpu":
        return replace(choice, graphs=config.train.graphs is True)
    pays, why = graphs_pay(config, shape, choice.micro)
    if not pays or config.train.graphs is True:
        return replace(choice, graphs=pays, reason=f"{choice.reason}; {why}")
    captured = config.model_copy(update={"train": config.train.model_copy(update={"graphs": True})})
    memory = _estimated(captured, shape, worker, choice.micro, recompute=choice.recompute)
    if memory.peak > worker.memory:
        why = f"no graphs, which would take it to {memory.peak / GIB:.1f} GiB"
        return replace(choice, reason=f"{choice.reason}; {why}")
    why = f"{why}, {memory.peak / GIB:.1f} GiB with them"
    return replace(choice, graphs=True, memory=memory, reason=f"{choice.reason}; {why}")


def _settled(config: RunConfig, shape: ModelShape | None, worker: Worker) -> Choice:
    """Resolve `train.micro_batch_size` and `train.activation_checkpointing`.

    For speed: the least expected time that fits, and of what is within 2 % of it the least memory.
    For memory: the least that keeps a GPU busy. Without a known shape or memory only one pack at a
    time is safe, and where nothing fits the smallest is tried.
    """
    train = config.train
    if shape is None or worker.memory is None:
        micro = 1 if train.micro_batch_size == "auto" else train.micro_batch_size
        recompute = train.activation_checkpointing is True or _saves(config)
        memory = None if shape is None else estimate(config, shape, worker, micro)
        return Choice(micro, recompute, memory, "the model's shape or the memory is not known")
    ways = [
        _Way(micro, recompute, _estimated(config, shape, worker, micro, recompute=recompute))
        for recompute in _recomputations(config)
        for micro in _micro_batches(config)
    ]
    fitting = [way for way in ways if way.memory.peak <= worker.memory]
    length = config.data.max_length
    if not fitting:
        best, why = min(ways, key=lambda way: way.memory.peak), "the least that there is: too much"
    elif _saves(config):
        busy = [way for way in fitting if way.micro * length <= _BUSY_TOKENS]
        best = max(busy or fitting[:1], key=lambda way: (way.recompute, way.micro))
        why = "train.objective=memory"
    else:
        least = min(way.time(length) for way in fitting)
        near = [way for way in fitting if way.time(length) <= _NEARLY * least]
        best, why = min(near, key=lambda way: way.memory.peak), "the fastest that fits"
    reason = (
        f"micro-batches of {best.micro} × {length} tokens, activations "
        f"{'computed twice' if best.recompute else 'kept'}: {why}, "
        f"{best.memory.peak / GIB:.1f} of {worker.memory / GIB:.1f} GiB"
    )
    return Choice(best.micro, best.recompute, best.memory, reason)


@dataclass(frozen=True)
class _Way:
    micro: int
    recompute: bool
    memory: Memory

    def time(self, length: int) -> float:
        """Relative time of a token."""
        return (_RECOMPUTED if self.recompute else 1.0) * (1 + _OVERHEAD / (self.micro * length))


# Measured at 8B on one H100: 15,726 tokens/s without recomputation, 12,272 with. A micro-batch
# costs about as much as so many tokens more: launches, and matrices too flat for the whole GPU.
_RECOMPUTED = 1.28
_OVERHEAD = 512
_NEARLY = 1.02
_BUSY_TOKENS = 8192  # half as many: 13 % slower for 2 GiB less, of an 8B base in 4 bits


def _saves(config: RunConfig) -> bool:
    return config.train.objective == "memory"


def _recomputations(config: RunConfig) -> list[bool]:
    wanted = config.train.activation_checkpointing
    if wanted != "auto":
        return [wanted]
    return [True] if _saves(config) else [False, True]


def _micro_batches(config: RunConfig) -> list[int]:
    if config.train.micro_batch_size != "auto":
        return [config.train.micro_batch_size]
    share = config.train.global_batch_size // config.scaling.most_workers
    return [micro for micro in range(1, share + 1) if share % micro == 0]


def _estimated(
    config: RunConfig, shape: ModelShape, worker: Worker, micro: int, *, recompute: bool
) -> Memory:
    train = config.train.model_copy(update={"activation_checkpointing": recompute})
    return estimate(config.model_copy(update={"train": train}), shape, worker, micro)
