"""How much memory one training worker needs, estimated from shapes alone (no torch)."""

from dataclasses import asdict, dataclass
from typing import Literal

from ftray.config.run import (
    ActivationPolicy,
    FullConfig,
    LoraConfig,
    QloraConfig,
    RunConfig,
    TrainConfig,
)
from ftray.model.shape import ModelShape

LOGITS_AT_ONCE = 2**26  # what ftray.model.entropy holds; a test compares the two
_WITH_HEAD = 4  # times as many where the output layer is trained
USABLE_OF_GPU = 0.95  # the caching allocator cannot use every gap
GIB = 2**30
_FP32 = 4  # bytes: whatever is trained, and its moments


@dataclass(frozen=True)
class Worker:
    """What one of `count` training workers runs on; `memory` is its own, in bytes if known."""

    device: Literal["cpu", "gpu"]
    count: int
    memory: int | None
    source: str


@dataclass(frozen=True)
class Memory:
    """Bytes on one worker at the peak of a step; `loading` is the base before it is shrunk.

    `on_host` is what a GPU leaves in its host's memory, of which no step can use anything else.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    graphs: int  # what captured passes hold beside those that are launched as they are
    snapshot: int  # the state's copy that a save is written from; of a GPU's it is on the host
    overhead: int
    loading: int
    on_host: int

    @property
    def parts(self) -> dict[str, int]:
        """What a step holds at once on the worker's device."""
        elsewhere = ("loading", "on_host")
        return {name: size for name, size in asdict(self).items() if name not in elsewhere}

    @property
    def allocated(self) -> int:
        """What CUDA's allocator counts at the peak: what graphs hold is free to it."""
        return max(sum(self.parts.values()) - self.overhead - self.graphs, self.loading)

    @property
    def peak(self) -> int:
        """The larger one of a step and of loading the base."""
        return max(sum(self.parts.values()), self.loading + self.overhead)


def estimate(config: RunConfig, shape: ModelShape, worker: Worker, micro: int) -> Memory:
    """Estimate one worker's memory for micro-batches of `micro` full-length packs."""
    element = bytes_per_element(config, worker)
    trained, tokens = trainable(config, shape), micro * config.data.max_length
    is_full = isinstance(config.adapter, FullConfig)
    shards = worker.count if config.strategy == "fsdp" else 1
    owned = trained // shards if is_full else trained  # adapters stay whole on every worker
    activations = _activations(config, shape, tokens, worker)
    graphs = activations + (owned * _FP32 if is_full else 0)  # its gradients, before they are added
    moment = 1 + 4 / 256 if config.train.optimizer == "adamw_8bit" else _FP32
    moments = round(2 * owned * moment)
    return Memory(
        weights=_trained_whole(shape, shards, element)
        if is_full
        else _frozen(config, shape, worker, element),
        adapter=0 if is_full else trained * _FP32,
        gradients=owned * _FP32,
        optimizer=moments,
        activations=activations,
        logits=_logits(shape, tokens, element, trains_head=is_full),
        graphs=graphs if config.train.graphs is True else 0,
        snapshot=owned * _FP32 + moments if worker.device == "cpu" else 0,
        overhead=OVERHEAD[worker.device],
        loading=_loading(config, shape, worker, element),
        on_host=_on_host(config, shape, tokens, worker),
    )


def trainable(config: RunConfig, shape: ModelShape) -> int:
    """Count trained parameters: all, or rank · (in + out) for each targeted linear layer."""
    match config.adapter:
        case FullConfig():
            return shape.parameters
        case LoraConfig(rank=rank):
            sizes = _targeted(config, shape)
            return shape.layers * sum(rank * (wide + high) for wide, high in sizes)


def unknown_targets(config: RunConfig, shape: ModelShape) -> list[str]:
    """Return the names in `adapter.target` that no linear layer of block 0 has."""
    match config.adapter:
        case LoraConfig(target=list(names)):
            return [n for n in names if not any(_ends_with_one(own, [n]) for own in shape.linear)]
        case _:
            return []


def bytes_per_element(config: RunConfig, worker: Worker) -> int:
    """Bytes of a number that is computed with: 2 for bfloat16, 4 for float32."""
    is_half = config.model.dtype == "bfloat16"
    return 2 if is_half or (config.model.dtype == "auto" and worker.device == "gpu") else 4


def keeps_table_on_host(config: RunConfig, device: Literal["cpu", "gpu"], *, tied: bool) -> bool:
    """Whether the input embeddings stay in the host's memory, of which a step reads some rows.

    Not where they are trained, are the output layer too, or are sharded over workers anyway.
    """
    is_frozen = isinstance(config.adapter, LoraConfig)
    saves = config.train.objective == "memory" and config.strategy == "ddp"
    return device == "gpu" and is_frozen and saves and not tied


def compiles(train: TrainConfig, *, on_gpu: bool) -> bool:
    """Resolve `train.compile`, as far as it can be without looking at the worker's machine."""
    if train.compile != "auto":
        return train.compile
    return on_gpu and (train.max_steps is None or train.max_steps >= WORTH_COMPILING)


WORTH_COMPILING = 20  # steps: fewer do not earn the time back

# What a worker holds before it loads anything: the process with torch, transformers and Ray
# (measured: 0.41 GiB), or a CUDA context with the workspaces of cuBLAS and NCCL.
OVERHEAD = {"cpu": GIB // 2, "gpu": 3 * GIB // 2}


def _loading(config: RunConfig, shape: ModelShape, worker: Worker, element: int) -> int:
    """Bytes of the base as it is loaded: for a GPU it shrinks on the host.

    Where weights are sharded a worker reads its own, and at most one of them is whole at a time: a
    step holds more. What transformers has to convert as it loads it is not known here.
    """
    match config.adapter:
        case _ if config.strategy == "fsdp":
            return 0
        case FullConfig():
            return shape.parameters * _FP32
        case QloraConfig() | LoraConfig(base_precision="fp8") if worker.device == "gpu":
            return 0
        case _:
            return shape.parameters * element


def _targeted(config: RunConfig, shape: ModelShape) -> list[tuple[int, int]]:
    """Sizes (in, out) of one layer's linears that get an adapter."""
    match config.adapter:
        case LoraConfig(target=list(names)):
            return [size for name, size in shape.linear.items() if _ends_with_one(name, names)]
        case LoraConfig():
            return list(shape.linear.values())
        case _:
            return []


def _ends_with_one(name: str, targets: list[str]) -> bool:
    return any(name == t or name.endswith(f".{t}") or t.endswith(f".{name}") for t in targets)


def _trained_whole(shape: ModelShape, shards: int, element: int) -> int:
    """Bytes of a model that is trained whole: in fp32, and in what it is computed in.

    That second copy is there when it differs, and the backward pass holds it until its end.
    Sharded over workers (FSDP2), it is two layers and what lies outside the layers at a time.
    """
    layer = sum(wide * high for wide, high in shape.linear.values())
    at_once = shape.parameters - (shape.layers - 2) * layer if shards > 1 else shape.parameters
    copy = at_once * element if shards > 1 or element < _FP32 else 0
    return shape.parameters * _FP32 // shards + copy


def _frozen(config: RunConfig, shape: ModelShape, worker: Worker, element: int) -> int:
    """Bytes of a base model that is not trained.

    Nf4 takes 4 bits a weight and a scale for 64 of them: 32 bits, or with double quantization
    8 bits and 32 more for 256 scales (Dettmers et al. 2023, arXiv:2305.14314, section 3).
    Sharded over workers (FSDP2), two layers and what lies outside the layers are whole at a time.
    """
    shards = worker.count if config.strategy == "fsdp" else 1
    match config.adapter:
        case QloraConfig(double_quantization=doubled):
            bits = 4 + (8 / 64 + 32 / (64 * 256) if doubled else 32 / 64)
        case _:
            bits = 8 * element  # of fp8 too: there are two copies of it
    in_linears = sum(wide * high for wide, high in shape.linear.values())  # of one layer
    outside = (shape.parameters - shape.layers * in_linears) * element
    if keeps_table_on_host(config, worker.device, tied=shape.tied):
        outside -= shape.vocab * shape.hidden * element
    layer = in_linears * bits / 8
    if shards == 1:
        return round(outside + shape.layers * layer)
    return round((outside + shape.layers * layer) / shards + outside + 2 * layer)


def _activations(config: RunConfig, shape: ModelShape, tokens: int, worker: Worker) -> int:
    """Bytes of activations at the peak of a micro-batch, on the worker's own device.

    What each layer keeps, what one layer computes again when its turn comes, and the three
    gradients [intermediate] that the backward pass holds. With `offload` a device has three states
    [hidden]: the newest one, one on its way, and one that arrives.
    """
    element = bytes_per_element(config, worker)
    whole = _kept(config, shape, worker, "none")
    match config.train.activation_checkpointing:
        case "auto":
            own = shape.layers * whole
        case "offload" if worker.device == "gpu":
            own = 3 * shape.hidden * element + whole
        case policy:
            kept = _kept(config, shape, worker, policy)
            own = shape.layers * kept + whole - kept
    per_token = own + 3 * shape.intermediate * element
    return tokens * per_token * _HOLES[worker.device]


def _kept(config: RunConfig, shape: ModelShape, worker: Worker, policy: ActivationPolicy) -> int:
    """Bytes that a layer keeps of each token for the backward pass.

    As Korthikanti et al. 2022 (arXiv:2205.05198, section 4.1) count them, for gated MLPs, RMSNorm,
    and fused attention, which keeps no scores. Where nothing is computed again:
    - two residual states [hidden], in fp32, where the norms are computed;
    - two normalized states [hidden], the inputs of the attention and of the MLP;
    - queries, keys, values and the attention's output [heads · head_dim]; keys and values are
      repeated to as many heads as queries have, since packed sequences need a mask; not by a
      GPU's kernel in bf16, which takes documents one by one;
    - that mask's row [length], which each layer keeps anew;
    - gate, up, activated gate and their product [intermediate]; torch.compile recomputes the
      activated gate, and keeps the residual states in the model's own precision;
    - with dropout a masked copy of each adapter's input;
    - with eager attention the scores, in fp32 and in the model's precision [heads · length].
    `pointwise`: the states before the attention and before the MLP, queries, keys, values, the
    attention's output, gate and up; not compiled, also what the MLP returns, which nobody reads;
    compiled, each dropout's mask, in bytes. `mlp`: neither gate nor up. `layer`: its input.
    """
    on_gpu, length = worker.device == "gpu", config.data.max_length
    compiled, is_eager = compiles(config.train, on_gpu=on_gpu), config.model.attention == "eager"
    element, query = bytes_per_element(config, worker), shape.heads * shape.head_dim
    key, by_documents = shape.kv_heads * shape.head_dim, on_gpu and element == 2 and not is_eager
    inputs = sum(wide for wide, _ in _targeted(config, shape)) if _drops(config) else 0
    products = 2 * query + 2 * (key if by_documents or not compiled else query)
    scores = shape.heads * length if is_eager else 0
    match policy:
        case "none":
            attention = products if by_documents else 4 * query + length
            kept = 2 * shape.hidden + attention + (3 if compiled else 4) * shape.intermediate
            states = 2 * shape.hidden * (element if compiled else 4)
            return states + (kept + inputs + scores) * element + 4 * scores
        case "layer" | "offload":
            return shape.hidden * element
        case "pointwise":
            kept = (2 if compiled else 3) * shape.hidden + products + 2 * shape.intermediate
        case "mlp":
            kept = 2 * shape.hidden + products
    return (kept + scores * compiled) * element + inputs * compiled


def _drops(config: RunConfig) -> bool:
    return isinstance(config.adapter, LoraConfig) and config.adapter.dropout > 0


# The C library's heap keeps holes where tensors were: a worker on CPU was measured to hold twice
# the formula above, and just that with MALLOC_MMAP_THRESHOLD_=1000000. CUDA's allocator has few.
_HOLES = {"cpu": 2, "gpu": 1}


def _on_host(config: RunConfig, shape: ModelShape, tokens: int, worker: Worker) -> int:
    """Bytes of the states that wait there, one [hidden] a layer; torch pins powers of 2."""
    if worker.device == "cpu" or config.train.activation_checkpointing != "offload":
        return 0
    state = tokens * shape.hidden * bytes_per_element(config, worker)
    return shape.layers * (1 << (state - 1).bit_length())


def _logits(shape: ModelShape, tokens: int, element: int, *, trains_head: bool) -> int:
    """Bytes of the chunked cross-entropy: a chunk of logits, and states with their gradients."""
    at_once = LOGITS_AT_ONCE * (_WITH_HEAD if trains_head else 1)
    chunk = min(at_once, tokens * shape.vocab)
    of_head = shape.vocab * shape.hidden * 4 if trains_head else 0
    states = 2 * tokens * shape.hidden * element
    return chunk * (8 + (element if element < 4 else 0)) + states + of_head
