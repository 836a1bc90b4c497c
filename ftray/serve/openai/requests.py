"""The bodies of requests: every field that is served, and its range.

Accepted and without effect, since nothing here depends on them: `user` (but for the choice of a
split alias) and `safety_identifier`, `metadata`, `prompt_cache_key`, `store: false`,
`service_tier: auto | default`, `modalities: ["text"]`, and `include_obfuscation: false`.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from ftray.serve.openai.messages import Message, NamedTool, Tool
from ftray.serve.openai.strict import Strict, unsupported
from ftray.serve.protocol import Sampling

MAX_CHOICES = 16
MAX_PROMPTS = 64
MAX_STOP_BYTES = 1024


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _short(stops: list[str]) -> list[str]:
    if any(len(stop.encode()) > MAX_STOP_BYTES for stop in stops):
        raise ValueError(f"a stop string must not be longer than {MAX_STOP_BYTES} bytes")
    return stops


def _token_ids(bias: dict[str, float]) -> dict[str, float]:
    wrong = [key for key in bias if not (key.isascii() and key.isdecimal() and len(key) < 10)]
    if wrong:
        raise ValueError(f"'{wrong[0][:40]}' is no token id")
    return bias


_STOP_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "maxItems": 4, "items": {"type": "string", "minLength": 1}},
    ]
}
Stop = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    BeforeValidator(_as_list),
    Field(max_length=4),
    AfterValidator(_short),
    WithJsonSchema(_STOP_SCHEMA),
]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
Label = Annotated[str, Field(max_length=512)]


class StreamOptions(Strict):
    """What a stream holds beside the answer."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class _Asked(Strict):
    """What both kinds of completion have."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    max_tokens: Tokens | None = None
    stop: Stop = Field(default_factory=list)
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    min_p: Share = 0.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: Annotated[dict[str, Bias], Field(max_length=1024), AfterValidator(_token_ids)] = (
        Field(default_factory=dict)
    )
    user: Label = ""
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], Label], Field(max_length=16)] = (
        Field(default_factory=dict)
    )

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> "_Asked":
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' is only allowed when 'stream' is true")
        return self

    @property
    def has_usage_chunk(self) -> bool:
        """Whether the stream ends with a chunk that tells the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self) -> Sampling:
        """Return how tokens are drawn."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias={int(key): value for key, value in self.logit_bias.items()},
            seed=self.seed,
        )


class JsonSchema(Strict):
    """A JSON schema that the answer has to follow."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool = False  # it is always followed exactly


class ResponseFormat(Strict):
    """What the answer's text has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_fits_type(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("'json_schema' is needed for type 'json_schema', and only there")
        return self


class ChatRequest(_Asked):
    """POST /v1/chat/completions."""

    not_supported: ClassVar[frozenset[str]] = frozenset(
        {
            *("audio", "function_call", "functions", "moderation", "prediction"),
            *("prompt_cache_options", "prompt_cache_retention", "reasoning_effort"),
            *("verbosity", "web_search_options", "best_of", "echo", "suffix"),
        }
    )
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat = ResponseFormat(type="text")
    tools: Annotated[list[Tool], Field(max_length=128)] = Field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    store: Literal[False] = False
    service_tier: Literal["auto", "default"] = "auto"
    safety_identifier: Label = ""
    prompt_cache_key: Label = ""

    @model_validator(mode="after")
    def _fields_fit(self) -> "ChatRequest":
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("set 'max_tokens' or 'max_completion_tokens', not both")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs': true")
        if not self.tools and self.tool_choice not in ("none", "auto"):
            raise ValueError("'tool_choice' needs 'tools'")
        if self.has_tools and self.response_format.type != "text":
            raise unsupported(
                "'response_format' together with 'tools' is not supported", "response_format"
            )
        return self

    @property
    def has_tools(self) -> bool:
        """Whether the model may or must call tools."""
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def answer_tokens(self) -> int | None:
        """How many tokens the answer may have; None: as many as fit."""
        return self.max_completion_tokens or self.max_tokens


def _as_prompts(value: object) -> object:
    """Bring the four forms of a prompt to a list of texts or of token ids."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return [value]
    return value


_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": {"type": "string"}},
        _IDS,
        {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": _IDS},
    ]
}
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
Prompts = Annotated[
    Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)],
    BeforeValidator(_as_prompts),
    WithJsonSchema(_PROMPT_SCHEMA),
]


class CompletionRequest(_Asked):
    """POST /v1/completions."""

    not_supported: ClassVar[frozenset[str]] = frozenset(
        {"suffix", "response_format", "tools", "tool_choice", "messages", "best_of"}
    )
    prompt: Prompts
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _echo_has_no_logprobs(self) -> "CompletionRequest":
        if self.echo and self.logprobs is not None:
            raise unsupported("'logprobs' together with 'echo' is not supported", "logprobs")
        return self

    @model_validator(mode="before")
    @classmethod
    def _best_is_all(cls, value: Any) -> Any:
        """Leave out a `best_of` that asks for what is done anyway."""
        if not isinstance(value, dict) or type(value.get("best_of")) is not int:
            return value
        is_all = value["best_of"] == value.get("n", 1)
        return {key: item for key, item in value.items() if key != "best_of" or not is_all}

    @property
    def answer_tokens(self) -> int:
        """How many tokens the answer may have."""
        return self.max_tokens or DEFAULT_COMPLETION_TOKENS


DEFAULT_COMPLETION_TOKENS = 16  # as OpenAI has it
