"""What `auto` settles for: micro-batch and activations, from shapes and memory (no torch)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ftray.config.run import ActivationPolicy, RunConfig
from ftray.model.shape import ModelShape
from ftray.train.launches import graphs_pay
from ftray.train.memory import GIB, Memory, Worker, compiles, estimate


@dataclass(frozen=True)
class Choice:
    """How a worker goes through its share of a global batch, and why."""

    micro: int
    activations: ActivationPolicy
    memory: Memory | None
    reason: str
    graphs: bool = False


def settle(config: RunConfig, shape: ModelShape | None, worker: Worker) -> Choice:
    """Resolve what is `auto` in `train`: micro-batch, activations, then graphs, if they fit."""
    choice = _settled(config, shape, worker)
    if shape is None or worker.memory is None or worker.device == "cpu":
        return replace(choice, graphs=config.train.graphs is True)
    pays, why = graphs_pay(_with(config, choice.activations), shape, choice.micro)
    if not pays or config.train.graphs is True:
        return replace(choice, graphs=pays, reason=f"{choice.reason}; {why}")
    captured = config.model_copy(update={"train": config.train.model_copy(update={"graphs": True})})
    memory = _estimated(captured, shape, worker, choice.micro, choice.activations)
    if memory.peak > worker.memory:
        why = f"no graphs, which would take it to {memory.peak / GIB:.1f} GiB"
        return replace(choice, reason=f"{choice.reason}; {why}")
    why = f"{why}, {memory.peak / GIB:.1f} GiB with them"
    return replace(choice, graphs=True, memory=memory, reason=f"{choice.reason}; {why}")


def _settled(config: RunConfig, shape: ModelShape | None, worker: Worker) -> Choice:
    """Resolve `train.micro_batch_size` and `train.activation_checkpointing`.

    For speed: the least expected time that fits, and of what is within 3 % of it what computes the
    least twice, then the least memory. For memory: the least that keeps a GPU busy. States go to
    the host's memory only where nothing else fits, or where that spares a quarter of all that is
    short. Without a known shape or memory only one pack at a time is safe, and where nothing fits
    the smallest is tried.
    """
    wanted = config.train.activation_checkpointing
    if shape is None or worker.memory is None:
        micro = 1 if config.train.micro_batch_size == "auto" else config.train.micro_batch_size
        policy = wanted if wanted != "auto" else "layer" if _saves(config) else "none"
        memory = None if shape is None else _estimated(config, shape, worker, micro, policy)
        return Choice(micro, policy, memory, "the model's shape or the memory is not known")
    ways = [
        _way(config, shape, worker, micro, policy)
        for policy in _policies(config, shape, worker)
        for micro in _micro_batches(config)
    ]
    best, why = _best(config, ways, worker.memory)
    why = why if wanted == "auto" else f"as the run says, {why}"
    return Choice(best.micro, best.policy, best.memory, _reason(best, why, ways, worker.memory))


@dataclass(frozen=True)
class _Way:
    micro: int
    length: int
    policy: ActivationPolicy
    memory: Memory
    twice: float  # a token's time, where 1 is that with nothing computed twice

    @property
    def time(self) -> float:
        """A token's time, as a multiple of that in a large micro-batch."""
        return self.twice * (1 + _OVERHEAD / (self.micro * self.length))


# By whether layers are compiled. Compiled: 8B on one H200 in one run, 16,365 tokens/s with `none`,
# 16,219, 13,511 with `mlp`, and 12,422. Not compiled, on a core of a CPU: 6 layers of the built-in
# model, fp32, 1,024 tokens.
_POINTWISE = {True: 1.01, False: 1.07}
_LAYER = {True: 1.32, False: 1.37}
_OF_SHARE = 0.88  # of an MLP's share of a layer's products, since attention is computed again too
# A micro-batch costs about as much as so many tokens more: launches, and matrices too flat for the
# whole GPU.
_OVERHEAD = 512
_OFFLOAD = 1.01  # on top of `layer` (12,361): copies share the memory with what they hide behind
_NEARLY = 1.03
_WORTH_IT = 0.25
_BUSY_TOKENS = 8192  # half as many: 13 % slower for 2 GiB less, of an 8B base in 4 bits


def _best(config: RunConfig, ways: Sequence[_Way], memory: int) -> tuple[_Way, str]:
    fitting = [way for way in ways if way.memory.peak <= memory]
    here = [way for way in fitting if way.policy != "offload"] or fitting
    if not fitting:
        return min(ways, key=lambda way: way.memory.peak), "the least that there is: too much"
    if not _saves(config):
        least = min(way.time for way in here)
        near = [way for way in here if way.time <= _NEARLY * least]
        best = min(near, key=lambda way: (way.twice, way.memory.peak))
        return best, "the fastest that fits"
    best = _busiest(here)
    away = _busiest([way for way in fitting if way.policy == "offload"] or here)
    if away.memory.peak <= (1 - _WORTH_IT) * best.memory.peak:
        return away, f"train.objective=memory, {_gib(best)} with layer"
    return best, "train.objective=memory"


def _busiest(ways: Sequence[_Way]) -> _Way:
    """The largest micro-batch up to what keeps a GPU busy, else the smallest."""
    busy = [way for way in ways if way.micro * way.length <= _BUSY_TOKENS]
    return max(busy, key=lambda way: way.micro) if busy else min(ways, key=lambda way: way.micro)


def _reason(best: _Way, why: str, ways: Sequence[_Way], memory: int) -> str:
    """Say what was chosen and why, and what the next faster way with such micro-batches needs."""
    faster = [way for way in ways if way.micro == best.micro and way.time < best.time]
    next_one = max(faster, key=lambda way: way.time, default=None)
    short = next_one is not None and next_one.memory.peak > memory
    than = f" ({next_one.policy} needs {_gib(next_one)})" if next_one is not None and short else ""
    host = f" and {best.memory.on_host / GIB:.1f} of the host's" if best.memory.on_host else ""
    return (
        f"micro-batches of {best.micro} × {best.length} tokens, "
        f"train.activation_checkpointing={best.policy}, {_TOLD[best.policy]}: {why}{than}, "
        f"{best.memory.peak / GIB:.1f} of {memory / GIB:.1f} GiB{host}"
    )


_TOLD: dict[ActivationPolicy, str] = {
    "none": "all activations kept",
    "pointwise": "all but products and attention computed twice",
    "mlp": "MLPs and all but products and attention computed twice",
    "layer": "layers computed twice",
    "offload": "layers computed twice, their inputs kept in the host's memory",
}


def _gib(way: _Way) -> str:
    return f"{way.memory.peak / GIB:.1f} GiB"


def _saves(config: RunConfig) -> bool:
    return config.train.objective == "memory"


def _policies(config: RunConfig, shape: ModelShape, worker: Worker) -> list[ActivationPolicy]:
    wanted = config.train.activation_checkpointing
    if wanted != "auto":
        return [wanted]
    goes = worker.device == "gpu" and config.train.graphs is not True
    away: list[ActivationPolicy] = ["offload"] if goes else []
    if _saves(config):
        return ["layer", *away]
    mlp: list[ActivationPolicy] = ["mlp"] if _in_mlp(shape) else []
    return ["none", "pointwise", *mlp, "layer", *away]


def _micro_batches(config: RunConfig) -> list[int]:
    if config.train.micro_batch_size != "auto":
        return [config.train.micro_batch_size]
    share = config.train.global_batch_size // config.scaling.most_workers
    return [micro for micro in range(1, share + 1) if share % micro == 0]


def _way(
    config: RunConfig, shape: ModelShape, worker: Worker, micro: int, policy: ActivationPolicy
) -> _Way:
    memory = _estimated(config, shape, worker, micro, policy)
    compiled = compiles(config.train, on_gpu=worker.device == "gpu")
    twice = _twice(shape, policy, compiled=compiled)
    return _Way(micro, config.data.max_length, policy, memory, twice)


def _twice(shape: ModelShape, policy: ActivationPolicy, *, compiled: bool) -> float:
    least, layer = _POINTWISE[compiled], _LAYER[compiled]
    match policy:
        case "none":
            return 1.0
        case "pointwise":
            return least
        case "mlp":
            return least + _OF_SHARE * (layer - least) * _in_mlp(shape)
        case "layer":
            return layer
        case "offload":
            return layer * _OFFLOAD


def _in_mlp(shape: ModelShape) -> float:
    """The MLP's share of the products that a layer computes again: of all but its last one."""
    sizes = {name: wide * high for name, (wide, high) in shape.linear.items()}
    own = {name: size for name, size in sizes.items() if name.startswith("mlp.")}
    last = max(own.values(), default=0)
    return (sum(own.values()) - last) / max(1, sum(sizes.values()) - last)


def _estimated(
    config: RunConfig, shape: ModelShape, worker: Worker, micro: int, policy: ActivationPolicy
) -> Memory:
    return estimate(_with(config, policy), shape, worker, micro)


def _with(config: RunConfig, policy: ActivationPolicy) -> RunConfig:
    train = config.train.model_copy(update={"activation_checkpointing": policy})
    return config.model_copy(update={"train": train})
