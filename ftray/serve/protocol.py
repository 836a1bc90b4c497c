"""What an engine is asked for and what it answers: data, and the Protocol that engines follow."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ftray.errors import ServeError

Finish = Literal["stop", "length", "error"]
Refusal = Literal[
    "context_length",  # prompt and answer can never fit
    "queue_full",  # try again later
    "draining",  # this replica takes nothing new
    "bad_adapter",  # it cannot be served by this engine
    "bad_grammar",  # the schema cannot be compiled
    "deadline",  # it waited for too long
    "lost",  # the engine that ran it is gone; another try may well succeed
    "internal",  # a bug or a lost process
]


class RefusedError(ServeError):
    """An engine does not do, or does not go on with, what it was asked for."""

    def __init__(self, message: str, hint: str = "", code: Refusal = "internal") -> None:
        super().__init__(message, hint)
        self.args = (message, hint, code)  # what pickle calls it with
        self.code = code


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from logits; the defaults are OpenAI's.

    Order: logit_bias and penalties change the logits, a grammar forbids tokens, then temperature
    divides, then top_k, top_p and min_p leave tokens out. temperature 0 takes the largest.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0  # of the most probable token's probability
    presence_penalty: float = 0.0  # on tokens of the answer, as OpenAI defines it
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True)
class Generation:
    """One prompt to be continued, `n` times; choice i draws from a generator of (seed, i)."""

    id: str
    prompt: tuple[int, ...]  # token ids
    adapter: str | None  # the content digest of a loaded version; None: the base model
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] | None = None  # tokens that end an answer; None: the base model's
    logprobs: int | None = None  # of the chosen token and of so many alternatives; None: of none
    grammar: str | None = None  # llguidance's grammar as JSON (`LLMatcher.grammar_from_…`)
    ignore_eos: bool = False  # for benchmarks
    owner: str = ""  # whose share of the engine it takes: an API key's id
    deadline_seconds: float | None = None  # from its submission to its end
    traceparent: str | None = None  # of the span that it belongs to


@dataclass(frozen=True)
class TokenLogprob:
    """A token of the vocabulary and its log-probability, before temperature and filters."""

    id: int
    text: bytes  # exactly what it stands for; may be a part of a character
    logprob: float


@dataclass(frozen=True)
class Token:
    """A token of an answer."""

    id: int
    chosen: TokenLogprob | None = None
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Piece:
    """What one step has added to one choice of a generation.

    `text` is complete UTF-8 and never holds a part of a stop string: what might become one is held
    back. A piece with `finish` is the choice's last; one with `error` the generation's last.
    """

    id: str
    index: int = 0
    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish: Finish | None = None
    error: RefusedError | None = None


@dataclass(frozen=True)
class AdapterSource:
    """An immutable adapter version on local disk."""

    digest: str
    folder: str
    name: str = ""  # for messages
    pinned: bool = False  # is never evicted


@dataclass(frozen=True)
class EngineInfo:
    """What an engine runs, told once."""

    kind: str  # embedded, vllm
    model: str
    max_length: int  # tokens of prompt and answer together
    dtype: str
    is_deterministic: bool  # whether an answer is the same in any company
    notes: tuple[str, ...] = ()  # what a user should know, such as a fallback


@dataclass(frozen=True)
class EngineStats:
    """What an engine does now, and has done since its start."""

    rows: int  # choices in the batch
    waiting: int
    kv_bytes: int
    kv_budget: int
    adapters: int  # resident
    adapter_bytes: int
    adapter_budget: int
    loads: int
    load_seconds: float
    evictions: int
    thrashes: int  # evicted, and loaded again soon after
    steps: int
    prompt_tokens: int
    answer_tokens: int
    cancelled: int


class Engine(Protocol):
    """One base model that continues prompts, many at once, each with an adapter or without.

    Its methods are called from one asyncio loop and do not block it.
    """

    async def start(self) -> EngineInfo:
        """Load the base model."""
        ...

    async def load(self, source: AdapterSource) -> None:
        """Make an adapter ready; at once where it is. Raises RefusedError("bad_adapter")."""
        ...

    async def submit(self, generation: Generation) -> None:
        """Take it into the queue; raises RefusedError where that is known at once."""
        ...

    def pieces(self) -> AsyncIterator[list[Piece]]:
        """Yield what each step has added, of all generations together; one reader at a time."""
        ...

    def cancel(self, id: str) -> None:
        """End a generation without a further piece; its place is free before the next step."""
        ...

    def stats(self) -> EngineStats:
        """Count."""
        ...

    @property
    def is_dead(self) -> bool:
        """Whether it can do nothing more, and only a new one helps."""
        ...

    async def drain(self, seconds: float) -> None:
        """Refuse what is new, let the rest end, and end what is left with an error piece."""
        ...

    async def stop(self) -> None:
        """Free everything."""
        ...
