"""What to serve and how: the `args` of the application in deploy/serve.yaml."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from ftray.config.base import Config, Tree, apply, parse_overrides, read_tree, validated
from ftray.config.paths import anchored
from ftray.config.run import ModelConfig
from ftray.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
BasePrecision = Literal["same", "nf4", "int8"]
_HINT = "a file like deploy/serve.yaml, as `serve deploy` takes it"


class VllmConfig(Config):
    """What only `kind: vllm` reads; vLLM needs an environment of its own."""

    python: str | None = None
    """Of the environment that holds vLLM; null: $FTRAY_VLLM_PYTHON."""
    active_adapters: PositiveInt = 8
    """Adapters in one batch; each one more takes memory on the GPU, used or not."""
    largest_rank: Annotated[int, Field(ge=1, le=512)] = 64
    """Adapters of a larger rank are refused; every place for one is as large as this."""
    eager: bool = False
    """Don't compile: starts sooner, answers slower."""


class EngineConfig(Config):
    """One engine: a copy of the base model that continues many prompts at once."""

    kind: Literal["embedded", "vllm"] = "embedded"
    """embedded: in this process, on any machine; vllm: a server beside it, faster on GPUs."""
    vllm: VllmConfig = Field(default_factory=VllmConfig)
    rows: PositiveInt = 16
    """Answers that are written together: more give more tokens a second, later for each."""
    waiting: Annotated[int, Field(ge=0)] = 256
    """Requests that wait for a row; the next one is answered 429."""
    kv_gib: PositiveFloat = 2.0
    """Memory for keys and values: how many rows of which length fit."""
    adapter_gib: PositiveFloat = 2.0
    """Memory for adapters; the least recently used one goes when another one is asked for."""
    prefill_tokens: PositiveInt = 512
    """Prompt tokens between two steps of the running answers: more starts sooner, and stalls."""
    max_length: PositiveInt | None = None
    """Tokens of prompt and answer together; null: what the model was made for."""
    base_precision: BasePrecision = "same"
    """nf4: the base in 4 bits, as QLoRA trains over; int8: in 8, and its inputs too."""
    pinned: list[str] = Field(default_factory=list)
    """Adapters (name, name@3, name@alias) that are loaded at the start and never evicted."""
    num_gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """auto: one if the cluster has any."""
    num_cpus: PositiveFloat = 1.0
    """What Ray counts; how many cores torch uses is `threads`."""
    threads: PositiveInt | None = None
    """Of torch; null: all cores of the machine, which suits one engine a machine."""

    @model_validator(mode="after")
    def _vllm_holds_the_base_as_it_is(self) -> Self:
        if self.kind == "vllm" and self.base_precision != "same":
            raise ValueError(
                f"base_precision={self.base_precision} is of kind=embedded: vLLM rounds otherwise"
            )
        return self


class ReplicasConfig(Config):
    """How many engines there are."""

    min: PositiveInt = 1
    """At quiet times."""
    max: PositiveInt = 1
    """Each one more holds the base once more."""
    target_requests: PositiveFloat = 12.0
    """Requests on each, above which another engine is started."""
    upscale_seconds: PositiveFloat = 30.0
    """So long has it to be too much before another engine is started, which then loads the base."""
    downscale_seconds: PositiveFloat = 600.0
    """So long have fewer engines to be enough before one is stopped."""
    drain_seconds: PositiveFloat = 60.0
    """For running answers when an engine is stopped or replaced."""

    @model_validator(mode="after")
    def _min_is_not_above_max(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, max is {self.max}")
        return self


class FilesConfig(Config):
    """What only the service reads (`ftray up`): what may be uploaded.

    How much of it in all is a project's: `ftray projects set`.
    """

    max_bytes: PositiveInt = 512 * 2**20
    """Of one file; it is streamed, so more costs disk and time alone."""
    max_rows: PositiveInt = 1_000_000
    """Lines of one file."""


class JobsConfig(Config):
    """What only the service reads: its queue, and how fine-tuning jobs are run."""

    running: PositiveInt = 4
    """Jobs at once over all projects, at most: fewer start where the cluster has no room."""
    cpus_per_worker: PositiveFloat = 1.0
    """Of a job's workers, and so their threads: more is faster without GPUs, and fewer jobs fit."""
    max_failures: Annotated[int, Field(ge=0)] = 5
    """Losses of a driver, of the cluster or of the storage that a job survives."""
    retry_seconds: PositiveFloat = 5.0
    """Before it is started again; twice as long each time, at most 5 minutes."""
    keep_runs_days: PositiveFloat = 30.0
    """After a job's end its run's folder goes; its model, events and numbers stay."""


def _absolute(path: str) -> str:
    """The server runs in another folder than the command that gave the path."""
    return str(Path(path).absolute())


class ServeConfig(Config):
    """One base model with all adapters of a storage root that were made for it."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig)
    replicas: ReplicasConfig = Field(default_factory=ReplicasConfig)
    storage: str | None = None
    """The storage root with the registry; null: $FTRAY_HOME, else ~/.ftray."""
    database: str | None = None
    """Keys and usage: postgresql://…, or null: $FTRAY_DATABASE, else accounts.db in the root."""
    access: Literal["keys", "open_until_first_key"] = "keys"
    """open_until_first_key: anybody who reaches the port, until `ftray keys create`."""
    deadline_seconds: PositiveFloat = 600.0
    """For a whole answer, its waiting included."""
    access_log: Annotated[str, AfterValidator(_absolute)] | None = None
    """File for one JSON line a request, without its text; null: Ray's log of the HTTP side."""
    otlp: str | None = None
    """OpenTelemetry's collector (http://host:4318), told of each request; needs ftray[otel]."""
    files: FilesConfig = Field(default_factory=FilesConfig)
    jobs: JobsConfig = Field(default_factory=JobsConfig)


class HttpConfig(Config):
    """Where the server listens."""

    host: str = "127.0.0.1"
    """Any other address than this machine's own needs `access: keys`."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 lets the system choose."""


class Served(Config):
    """A server: where it listens and what it serves."""

    http: HttpConfig = Field(default_factory=HttpConfig)
    app: ServeConfig = Field(default_factory=ServeConfig)


def load_served(path: Path | None, overrides: list[str]) -> Served:
    """Read Serve's own config file, or take the defaults; then apply dotted overrides.

    Without a file the server is open on this machine until the first key is made.
    """
    source = "the command line" if path is None else str(path)
    tree = {"app": {"access": "open_until_first_key"}} if path is None else _from_serve(path)
    changes = {
        key if key.startswith("http.") else f"app.{key}": value
        for key, value in parse_overrides(overrides).items()
    }
    served = validated(Served, apply(tree, changes), source)
    if served.http.host not in LOOPBACK and served.app.access != "keys":
        raise ConfigError(
            f"{source}: access=open_until_first_key on {served.http.host}: anybody could call it",
            "set access=keys and make a key (ftray keys create NAME), or listen on 127.0.0.1",
        )
    return served


def serve_tree(path: Path | None, served: Served) -> Tree:
    """Return the file as Ray Serve reads it, with what overrides have made of it."""
    only = {"name": "ftray", "import_path": IMPORT_PATH, "route_prefix": "/"}
    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    default: Tree = {"applications": [only], "logging_config": quiet}
    tree = default if path is None else read_tree(path)
    [application] = tree["applications"]
    args = anchored(served.app.model_dump(mode="json"), Path.cwd())
    http = {**(tree.get("http_options") or {}), **served.http.model_dump()}
    return {**tree, "http_options": http, "applications": [{**application, "args": args}]}


def _from_serve(path: Path) -> Tree:
    """Take what is ours out of a file that Ray Serve reads as well."""
    tree = read_tree(path, _HINT)
    applications = tree.get("applications")
    if not isinstance(applications, list) or len(applications) != 1:
        raise ConfigError(f"{path}: expected one entry in 'applications'", _HINT)
    [application] = applications
    if application.get("import_path") not in (IMPORT_PATH, _ANSWERS_ONLY):
        raise ConfigError(f"{path}: expected import_path: {IMPORT_PATH}", _HINT)
    options: dict[str, Any] = tree.get("http_options") or {}
    http = {key: options[key] for key in ("host", "port") if key in options}
    return {"http": http, "app": application.get("args") or {}}


IMPORT_PATH = "ftray.service.app:build"
_ANSWERS_ONLY = "ftray.serve.app:build"  # what `ftray serve` runs, whichever of them a file names
