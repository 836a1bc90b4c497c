"""The body of `POST /v1/fine_tuning/jobs`: every field that is served, and its range.

`ftray` is our own: what OpenAI's API has no word for.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from ftray.serve.openai.strict import Strict, unsupported

Auto = Literal["auto"]
Id = Annotated[str, Field(min_length=1, max_length=100)]
Epochs = Annotated[int, Field(ge=1, le=1000)]
BatchSize = Annotated[int, Field(ge=1, le=4096)]
Multiplier = Annotated[float, Field(gt=0, le=1000)]


def _plain(text: str) -> str:
    if "\0" in text:
        raise ValueError("text must not hold a NUL character")
    return text


Plain = AfterValidator(_plain)
METADATA_KEY = r"""[^"\\\x00-\x1f]{1,64}"""  # a JSON path can name it in both databases
Metadata = Annotated[
    dict[
        Annotated[str, Field(pattern=f"^{METADATA_KEY}$")],
        Annotated[str, Field(max_length=512), Plain],
    ],
    Field(max_length=16),
]


class Hyperparameters(Strict):
    """What `auto` means is shown in the job."""

    n_epochs: Auto | Epochs = "auto"
    batch_size: Auto | BatchSize = "auto"
    learning_rate_multiplier: Auto | Multiplier = "auto"


class Supervised(Strict):
    """The settings of the one method that there is."""

    hyperparameters: Hyperparameters = Field(default_factory=Hyperparameters)


class Method(Strict):
    """How to fine-tune."""

    type: Literal["supervised"] = "supervised"
    supervised: Supervised = Field(default_factory=Supervised)

    @model_validator(mode="before")
    @classmethod
    def _only_supervised(cls, value: Any) -> Any:
        named = value.get("type") if isinstance(value, dict) else None
        if named in ("dpo", "reinforcement"):
            raise unsupported(f"the method '{named}' is not supported, only 'supervised'", "type")
        return value


class Wandb(Strict):
    """Where Weights & Biases gets the numbers."""

    project: Annotated[str, Field(pattern=r"^[\w.-]{1,128}$")]
    entity: Annotated[str, Field(pattern=r"^[\w.-]{1,128}$")] | None = None
    tags: Annotated[
        list[Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")]], Field(max_length=16)
    ] = Field(default_factory=list)
    not_supported: ClassVar[frozenset[str]] = frozenset({"name"})


class Integration(Strict):
    """A tracker beside the job's own events."""

    type: Literal["wandb"]
    wandb: Wandb


class Options(Strict):
    """ftray's own settings; null: what the run file's default is."""

    rank: Annotated[int, Field(ge=1, le=256)] | None = None
    alpha: Annotated[float, Field(gt=0, le=4096)] | None = None
    targets: (
        Literal["all-linear"]
        | Annotated[
            list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,100}$")]],
            Field(min_length=1, max_length=32),
        ]
        | None
    ) = None
    quantization: Literal["none", "nf4"] = "none"
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    max_length: Annotated[int, Field(ge=8, le=1_000_000)] | None = None
    priority: Annotated[int, Field(ge=-10, le=10)] = 0
    search: dict[str, Any] | None = None


class JobRequest(Strict):
    """A job to be created."""

    model: Annotated[str, Field(min_length=1, max_length=256), Plain]
    training_file: Id
    validation_file: Id | None = None
    suffix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    metadata: Metadata = Field(default_factory=dict)
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    integrations: Annotated[list[Integration], Field(max_length=1)] = Field(default_factory=list)
    ftray: Options = Field(default_factory=Options)

    @model_validator(mode="after")
    def _says_it_once(self) -> Self:
        if self.method is not None and self.hyperparameters is not None:
            raise ValueError("give hyperparameters within method, or alone: not both")
        return self

    @property
    def wanted(self) -> Hyperparameters:
        """What was asked for, in the old place or the new."""
        if self.method is not None:
            return self.method.supervised.hyperparameters
        return self.hyperparameters or Hyperparameters()
