"""The run file: what to train, on which data, how, and on how many workers."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from ftray.config.base import Config, Tree, apply, parse_overrides, read_tree, validated

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
BUILTIN_MODEL = "smollm2-135m-instruct"

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Paths = str | list[str]


class ModelConfig(Config):
    """The base model: a Hugging Face id, a local folder, or the built-in one."""

    name: str = BUILTIN_MODEL
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: Literal["sdpa", "eager"] = "sdpa"
    trust_remote_code: bool = False


class LoraConfig(Config):
    """Low-rank adapters beside frozen linear layers (Hu et al. 2021, arXiv:2106.09685)."""

    method: Literal["lora"] = "lora"
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: PositiveFloat = 32.0
    target: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    dropout: Fraction = 0.0
    rslora: bool = False
    init_from: str | None = None

    @property
    def scaling(self) -> float:
        """The factor on B·A·x: alpha/rank, or alpha/√rank for rsLoRA (arXiv:2312.03732)."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


class QloraConfig(LoraConfig):
    """LoRA over a base kept in 4-bit NormalFloat (Dettmers et al. 2023, arXiv:2305.14314)."""

    method: Literal["qlora"] = "qlora"  # type: ignore[assignment]  # narrows the tag of the union
    double_quantization: bool = True


class FullConfig(Config):
    """Every weight of the model is trained."""

    method: Literal["full"] = "full"
    init_from: str | None = None


AdapterConfig = Annotated[LoraConfig | QloraConfig | FullConfig, Field(discriminator="method")]


class DataConfig(Config):
    """Where the examples are, what they look like, and how they become batches."""

    train: Paths
    eval: Paths | None = None
    format: Literal["messages", "prompt_completion", "instruction", "text"] = "messages"
    columns: dict[str, str] = {}
    chat_template: str = "model"
    max_length: Annotated[int, Field(ge=8)] = 2048
    packing: bool = True
    on_bad_row: Literal["fail", "drop"] = "fail"

    @field_validator("train", "eval")
    @classmethod
    def _some_path(cls, paths: Paths | None) -> Paths | None:
        if paths is not None and (not paths or not all(as_list(paths))):
            raise ValueError("expected a file, a glob or a folder, or a list of them")
        return paths

    @model_validator(mode="after")
    def _known_columns(self) -> Self:
        known = COLUMNS[self.format]
        unknown = sorted(set(self.columns) - set(known))
        if unknown:
            names = ", ".join(unknown)
            raise ValueError(
                f"columns: format '{self.format}' has no '{names}'; it has {', '.join(known)}"
            )
        return self


COLUMNS = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "instruction": ("instruction", "input", "output"),
    "text": ("text",),
}


class TrainConfig(Config):
    """The optimization: how long, how large the steps, and in which batches."""

    learning_rate: PositiveFloat = 2e-4
    epochs: PositiveInt | None = None
    max_steps: PositiveInt | None = None
    global_batch_size: PositiveInt = 16
    micro_batch_size: PositiveInt | Literal["auto"] = "auto"
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    max_grad_norm: PositiveFloat | None = 1.0
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    activation_checkpointing: bool = False
    compile: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

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
    patience: PositiveInt | None = None
    samples: Annotated[int, Field(ge=0, le=16)] = 2
    sample_tokens: PositiveInt = 64


class ScalingConfig(Config):
    """How many workers train, with what each, and how they share the model."""

    num_workers: PositiveInt = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    cpus_per_worker: PositiveFloat | Literal["auto"] = "auto"
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    max_failures: Annotated[int, Field(ge=0)] = 3
    placement_timeout_seconds: PositiveFloat = 120.0


class CheckpointConfig(Config):
    """How often a run is saved, and how many of the newest saves are kept."""

    every_steps: PositiveInt = 100
    keep: PositiveInt = 2


class RunConfig(Config):
    """One fine-tuning run."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    model: ModelConfig = ModelConfig()
    adapter: AdapterConfig = LoraConfig()
    data: DataConfig
    train: TrainConfig
    eval: EvalConfig = EvalConfig()
    scaling: ScalingConfig = ScalingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: list[Literal["tensorboard", "mlflow", "wandb"]] = ["tensorboard"]
    storage: str | None = None

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        whole, workers = self.train.global_batch_size, self.scaling.num_workers
        micro = 1 if self.train.micro_batch_size == "auto" else self.train.micro_batch_size
        if whole % (workers * micro):
            raise ValueError(
                f"train.global_batch_size={whole} is not a multiple of scaling.num_workers={workers}"
                f" × train.micro_batch_size={micro}; next that fits: {_next_multiple(whole, workers * micro)}"
            )
        if self.eval.patience and not self.data.eval:
            raise ValueError("eval.patience needs data.eval")
        return self


def load_run(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file and apply `section.key=value` overrides.

    Relative paths count from the file's folder in the file, from the working directory in overrides.
    """
    tree = _anchored(read_tree(path), path.resolve().parent)
    changes = apply({}, parse_overrides(overrides))
    return validated(RunConfig, _merged(tree, _anchored(changes, Path.cwd())), source=str(path))


def as_list(paths: Paths | None) -> list[str]:
    """Return one path or several as a list."""
    return [paths] if isinstance(paths, str) else list(paths or [])


_PATH_KEYS = ("data.train", "data.eval", "data.chat_template", "storage", "model.name")


def _anchored(tree: Tree, folder: Path) -> Tree:
    changes = {}
    for dotted in _PATH_KEYS:
        value: Any = tree
        for name in dotted.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, str | list):
            changes[dotted] = _anchored_value(dotted, value, folder)
    return apply(tree, changes)


def _anchored_value(dotted: str, value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_anchored_value(dotted, one, folder) for one in value]
    names_no_file = dotted == "data.chat_template" and value in ("model", "none")
    is_hub_id = dotted == "model.name" and not re.match(r"^[.~/]", value)
    if not isinstance(value, str) or names_no_file or is_hub_id or "://" in value:
        return value
    return str(folder / Path(value).expanduser())


def _merged(tree: Tree, changes: Tree) -> Tree:
    merged = dict(tree)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _next_multiple(number: int, of: int) -> int:
    return -(-number // of) * of
