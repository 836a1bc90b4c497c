"""The run file: what to train, on which data, how, and on how many workers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from ftray.config.base import Config, apply, parse_overrides, read_tree, validated
from ftray.config.data import DataConfig
from ftray.config.paths import anchored

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
BUILTIN_MODEL = "smollm2-135m-instruct"

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Tracker = Literal["tensorboard", "mlflow", "wandb"]
_TENSORBOARD: list[Tracker] = ["tensorboard"]


class ModelConfig(Config):
    """The base model: a Hugging Face id, a local folder, or the built-in one."""

    name: str = BUILTIN_MODEL
    """A path starts with `/`, `.` or `~`; anything else is a Hugging Face id."""
    revision: str | None = None
    """A commit pins the base for ever; a branch name (None: main) may move between runs."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What is computed in; auto: bfloat16 on a GPU (half the memory), float32 on CPU."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """eager holds length² scores per head: for comparison only."""
    trust_remote_code: bool = False
    """True runs Python code that the model's publisher wrote."""


class LoraConfig(Config):
    """Low-rank adapters beside frozen linear layers (Hu et al. 2021, arXiv:2106.09685)."""

    method: Literal["lora"] = "lora"
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """More rank holds more of a new task, costs memory in proportion, and overfits sooner."""
    alpha: PositiveFloat = 32.0
    """The adapter's weight is alpha/rank: raising alpha acts like a higher learning rate."""
    target: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Fewer layers (as in [q_proj, v_proj]) train faster and learn less."""
    dropout: Fraction = 0.0
    """Helps small data sets that are seen many times; slows the rest down."""
    rslora: bool = False
    """Scale by alpha/√rank, so that ranks above 32 keep learning (arXiv:2312.03732)."""
    init_from: str | None = None
    """Go on from a published adapter (`name` or `name@version`) of the same shape and base."""
    base_precision: Literal["auto", "same", "fp8"] = "auto"
    """What the frozen base is kept in; auto: what is computed in. fp8 is faster on GPUs that
    multiply 8-bit floats (Hopper and newer), takes as much memory as bf16, and rounds each product
    by some hundredths, about as much as nf4 does."""

    @property
    def scaling(self) -> float:
        """The factor on B·A·x."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


class QloraConfig(LoraConfig):
    """LoRA over a base kept in 4-bit NormalFloat (Dettmers et al. 2023, arXiv:2305.14314)."""

    method: Literal["qlora"] = "qlora"  # type: ignore[assignment]  # narrows the tag of the union
    base_precision: Literal["auto", "nf4"] = "auto"  # type: ignore[assignment]  # narrows it
    """Always 4 bits: the least memory, each product a little slower."""
    double_quantization: bool = True
    """Quantize the block scales too: 0.37 bits a weight less, no measurable loss (§3)."""


class FullConfig(Config):
    """Every weight of the model is trained: needs most memory and a learning rate near 1e-5."""

    method: Literal["full"] = "full"
    init_from: str | None = None
    """Go on from a published full fine-tuning (`name` or `name@version`) of the same base."""


AdapterConfig = Annotated[LoraConfig | QloraConfig | FullConfig, Field(discriminator="method")]


ActivationPolicy = Literal["none", "pointwise", "mlp", "layer", "offload"]


def _no_switch(value: Any) -> Any:
    """Name what a switch was called before there were more than two ways."""
    if isinstance(value, bool):
        word = "layer" if value else "none"
        raise ValueError(f"{str(value).lower()} is called '{word}' now: set {word}, or auto")
    return value


class TrainConfig(Config):
    """The optimization: how long, how large the steps, and in which batches."""

    learning_rate: PositiveFloat = 2e-4
    """About 2e-4 for LoRA and 1e-5 for full; ten times too much diverges."""
    epochs: PositiveInt | None = None
    """Passes over the data; more than 3 usually memorizes."""
    max_steps: PositiveInt | None = None
    """Optimizer steps; alone it repeats the data as needed, with epochs it caps them."""
    global_batch_size: PositiveInt = 16
    """Packs (rows, when not packing) in one optimizer step, over all workers."""
    micro_batch_size: PositiveInt | Literal["auto"] = "auto"
    """What a worker computes at once: memory against speed, without effect on the result."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls to 0 after the warm-up; constant: it doesn't."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which the learning rate rises from 0: protects a fresh optimizer state."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Pulls trained matrices towards 0 (AdamW); biases and norms are left alone."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Longer gradients are scaled down to this norm; null: never."""
    on_nan: Literal["stop", "skip", "rewind"] = "stop"
    """A loss that is no number: fail, leave its batch out, or return to the last checkpoint too."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit keeps its two moments in a byte each: matters for full, hardly for LoRA."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """The averaging of AdamW's two moments; 0.95 for the second forgets spikes sooner."""
    activation_checkpointing: Annotated[
        Literal["auto", ActivationPolicy], BeforeValidator(_no_switch)
    ] = "auto"
    """What the backward pass finds kept; the rest is computed twice, with the same gradients.
    none: all is kept. pointwise: products and attention are, norms and activations are not (1 %
    slower, a fifth less). mlp: the MLP's products are not either (a fifth slower, half). layer: a
    layer's input alone (a third slower, far less). offload: not even that, it waits in a GPU's
    host's memory: for very long rows. auto: what is fastest of all that fits, or where the
    objective is memory, the least."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile per layer: fused kernels, after up to a minute of compiling. auto: on a GPU,
    unless `max_steps` is below 20."""
    graphs: bool | Literal["auto"] = "auto"
    """Record a micro-batch's layers as CUDA graphs and replay them, for memory that is held for
    good. auto: compiled layers on a GPU, where launches take longer than products, if it fits."""
    objective: Literal["speed", "memory"] = "speed"
    """What `auto` settles for: the fastest micro-batch that fits, or the least memory at which a
    GPU is still busy. memory also leaves frozen input embeddings in the host's memory."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Decides the order of rows, the adapter's first weights and dropout."""

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if self.epochs is None and self.max_steps is None:
            raise ValueError("set epochs, max_steps, or both (then max_steps caps epochs)")
        if self.max_steps is not None and self.warmup_steps >= self.max_steps:
            raise ValueError(f"warmup_steps must be below max_steps ({self.max_steps})")
        return self


class EvalConfig(Config):
    """When the eval set is measured, and what follows from it."""

    every_steps: PositiveInt | None = None
    """Steps between two evals; null: once an epoch. There is one at the end in any case."""
    patience: PositiveInt | None = None
    """Stop after this many evals without a new best; null: never."""
    samples: Annotated[int, Field(ge=0, le=16)] = 2
    """Eval rows that are answered by generation and logged at each eval."""
    sample_tokens: PositiveInt = 64
    """The longest answer of a sample."""


class ElasticConfig(Config):
    """A number of workers that follows what the cluster has; the global batch stays the same."""

    min: PositiveInt = 1
    """With fewer the run waits, and after `placement_timeout_seconds` fails."""
    max: PositiveInt
    """More are not started; each change of the number costs a restart from a checkpoint."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min={self.min} is above max={self.max}")
        return self


class ScalingConfig(Config):
    """How many workers train, with what each, and how they share the model."""

    num_workers: PositiveInt | ElasticConfig = 1
    """Does not change the result: the global batch is shared out among them."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """auto: 1 where the cluster has GPUs, else 0."""
    cpus_per_worker: PositiveFloat | Literal["auto"] = "auto"
    """auto: an equal share, with 1 CPU left for reading data."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """fsdp shards the weights: less memory, more traffic; auto: fsdp for full, else ddp."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Losses of workers that a run survives; a preempted worker is none."""
    placement_timeout_seconds: PositiveFloat = 120.0
    """How long to wait for the cluster to place the workers."""
    step_timeout_seconds: PositiveFloat | None = None
    """A longer step is hung, and its workers are lost; first steps and evals may take ten times
    that. null: 20 median steps, at least 5 minutes."""

    @property
    def most_workers(self) -> int:
        """The number of workers, or the most of an elastic run."""
        workers = self.num_workers
        return workers.max if isinstance(workers, ElasticConfig) else workers

    @property
    def least_workers(self) -> int:
        """The number of workers, or the least with which an elastic run goes on."""
        workers = self.num_workers
        return workers.min if isinstance(workers, ElasticConfig) else workers


class CheckpointConfig(Config):
    """How often a run is saved, and how many of the newest saves are kept."""

    every_steps: PositiveInt = 100
    """Fewer saves cost less time; a restart repeats the steps since the last one."""
    keep: PositiveInt = 2
    """The newest ones; the best one by eval loss stays besides."""


class PublishConfig(Config):
    """What the registry gets of a finished run, and who may call it."""

    checkpoints: bool = False
    """Each kept checkpoint becomes a version too, before the result; each costs an export."""
    project: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    """Only this project's API keys may call it; null: every key."""
    model: Annotated[str, Field(pattern=r"^ft:[^:\s]+:[^:\s]*:[^:\s]*:[a-z0-9]{8}$")] | None = None
    """What clients call it besides its name; the fine-tuning service sets it."""


class RunConfig(Config):
    """One fine-tuning run."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    """Names the run and the adapter that it publishes; the same name resumes."""
    model: ModelConfig = ModelConfig()
    adapter: AdapterConfig = LoraConfig()
    data: DataConfig
    train: TrainConfig
    eval: EvalConfig = EvalConfig()
    scaling: ScalingConfig = ScalingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    publish: PublishConfig = PublishConfig()
    tracking: list[Tracker] = Field(default_factory=_TENSORBOARD.copy)
    """Where curves are sent; metrics.jsonl is always written."""
    storage: str | None = None
    """Root folder or URI of tokens, runs and adapters; null: $FTRAY_HOME, else ~/.ftray."""

    @property
    def strategy(self) -> Literal["ddp", "fsdp"]:
        """What `scaling.strategy` means: auto shards what is trained whole, copies adapters."""
        if self.scaling.strategy != "auto":
            return self.scaling.strategy
        is_full = isinstance(self.adapter, FullConfig)
        return "fsdp" if is_full and self.scaling.most_workers > 1 else "ddp"

    @property
    def graphs_obstacle(self) -> str:
        """Which setting keeps passes from being captured as CUDA graphs; empty if none does."""
        if not self.data.packing:
            return "rows of many lengths need data.packing=true"
        if self.strategy == "fsdp":
            return "sharded weights (scaling.strategy=fsdp) are gathered between layers"
        if self.model.attention == "eager":
            return "model.attention=eager makes masks from what the GPU holds"
        if self.train.compile is False:
            return "layers are not compiled (train.compile=false)"
        if self.train.objective == "memory":
            return "train.objective=memory, and graphs hold theirs for good"
        if self.train.activation_checkpointing == "offload":
            return (
                "states go to the host's memory and back (train.activation_checkpointing=offload)"
            )
        return ""

    @model_validator(mode="before")
    @classmethod
    def _lora_unless_said(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and isinstance(tree.get("adapter", {}) or {}, dict):
            return {**tree, "adapter": {"method": "lora"} | (tree.get("adapter") or {})}
        return tree

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        whole, workers = self.train.global_batch_size, self.scaling.most_workers
        micro = 1 if self.train.micro_batch_size == "auto" else self.train.micro_batch_size
        unit = workers * micro
        if isinstance(self.scaling.num_workers, ElasticConfig):
            if whole < unit:
                raise ValueError(
                    f"train.global_batch_size={whole} is less than scaling.num_workers.max="
                    f"{workers} × train.micro_batch_size={micro}: some workers would have no work"
                )
        elif whole % unit:
            raise ValueError(
                f"train.global_batch_size={whole} is not a multiple of scaling.num_workers="
                f"{workers} × train.micro_batch_size={micro}; next: {-(-whole // unit) * unit}"
            )
        if self.eval.patience and not (self.data.eval or self.data.eval_fraction):
            raise ValueError("eval.patience needs data.eval or data.eval_fraction")
        return self

    @model_validator(mode="after")
    def _base_can_be_sharded(self) -> Self:
        match self.adapter:
            case LoraConfig(base_precision="fp8") if self.strategy == "fsdp":
                raise ValueError(
                    "adapter.base_precision=fp8 is not sharded: set scaling.strategy=ddp, or"
                    " adapter.base_precision=same"
                )
            case LoraConfig(base_precision="fp8") if self.model.dtype == "float32":
                raise ValueError(
                    "adapter.base_precision=fp8 computes in bfloat16: leave model.dtype"
                )
        return self

    @model_validator(mode="after")
    def _graphs_can_be_captured(self) -> Self:
        if self.train.graphs is True and self.graphs_obstacle:
            raise ValueError(f"train.graphs=true: {self.graphs_obstacle}; set train.graphs=auto")
        return self

    @model_validator(mode="after")
    def _moments_can_be_sharded(self) -> Self:
        is_full = isinstance(self.adapter, FullConfig)
        if is_full and self.strategy == "fsdp" and self.train.optimizer == "adamw_8bit":
            raise ValueError(
                "train.optimizer=adamw_8bit cannot hold sharded weights: set scaling.strategy=ddp,"
                " or train.optimizer=adamw"
            )
        return self


def load_run(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file and apply `section.key=value` overrides, in order.

    Relative paths count from the file's folder, in overrides from the working directory.
    """
    tree = anchored(read_tree(path, "ftray init lora > run.yaml"), path.resolve().parent)
    changes = parse_overrides(overrides)
    moved = {key: anchored(value, Path.cwd(), key) for key, value in changes.items()}
    return validated(RunConfig, apply(tree, moved), source=str(path))
