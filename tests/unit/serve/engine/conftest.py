"""A tiny model, eight adapters that differ from it and from one another, and plain PEFT beside."""

import asyncio
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from ftray.config.run import ModelConfig
from ftray.config.serve import BasePrecision
from ftray.model.export import load_with_peft
from ftray.serve.engine.engine import EmbeddedEngine
from ftray.serve.engine.limits import EngineLimits
from ftray.serve.protocol import (
    AdapterSource,
    EngineInfo,
    Finish,
    Generation,
    RefusedError,
    Sampling,
    Token,
)

CPU = torch.device("cpu")
GREEDY = Sampling(temperature=0)
NEW_TOKENS = 20
SHAPES: list[dict[str, Any]] = [
    {"r": 8, "target_modules": "all-linear"},
    {"r": 16, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    {"r": 3, "target_modules": ["gate_proj", "up_proj", "down_proj"]},
    {"r": 8, "target_modules": "all-linear", "lora_alpha": 32},
    {"r": 4, "target_modules": "all-linear", "rank_pattern": {"q_proj": 12}},
    {"r": 8, "target_modules": "all-linear", "alpha_pattern": {"layers.1.mlp.up_proj": 64}},
    {"r": 40, "target_modules": ["o_proj", "k_proj"]},
    {"r": 8, "target_modules": "all-linear"},
]


@dataclass
class Answer:
    """What an engine's pieces add up to."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: Finish | None = None

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]


@dataclass
class Client:
    """One reader of the pieces, for any number of generations."""

    engine: EmbeddedEngine
    info: EngineInfo
    answers: dict[tuple[str, int], Answer] = field(default_factory=dict)
    steps: list[set[str]] = field(default_factory=list)
    ends: dict[str, asyncio.Future[None]] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)

    async def read(self) -> None:
        async for pieces in self.engine.pieces():
            self.steps.append({piece.id for piece in pieces})
            for piece in pieces:
                answer = self.answers.setdefault((piece.id, piece.index), Answer())
                answer.text += piece.text
                answer.tokens += piece.tokens
                answer.finish = piece.finish or answer.finish
                self.left[piece.id] -= piece.finish is not None
                end = self.ends[piece.id]
                if piece.error:
                    end.set_exception(piece.error)
                elif not self.left[piece.id] and not end.done():
                    end.set_result(None)

    async def load(self, zoo: "Zoo") -> None:
        for name in zoo.folders:
            await self.engine.load(zoo.source(name))

    async def submit(self, generation: Generation) -> None:
        self.ends[generation.id] = asyncio.get_running_loop().create_future()
        self.left[generation.id] = generation.n
        await self.engine.submit(generation)

    async def ask(self, generation: Generation) -> Answer:
        await self.submit(generation)
        await self.ends[generation.id]
        return self.answers[generation.id, 0]

    async def started(self, id: str, tokens: int = 1) -> None:
        while len(self.answers.get((id, 0), Answer()).tokens) < tokens:
            await asyncio.sleep(0.001)


@asynccontextmanager
async def run_engine(
    folder: Path,
    limits: EngineLimits | None = None,
    *,
    precision: BasePrecision = "same",
    dtype: str = "float32",
) -> AsyncIterator[Client]:
    limits = limits or EngineLimits(threads=1)
    model = ModelConfig.model_validate({"name": str(folder), "dtype": dtype})
    engine = EmbeddedEngine(folder, model, limits, CPU, precision)
    client = Client(engine, await engine.start())
    reader = asyncio.create_task(client.read())
    try:
        yield client
    finally:
        await engine.stop()
        await reader


@pytest.fixture
def running() -> Any:
    """`async with running(folder, limits) as client:` — an engine and its reader."""
    return run_engine


@pytest.fixture
def go() -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run a test's coroutine; what hangs fails."""
    return lambda coroutine: asyncio.run(asyncio.wait_for(coroutine, 20))


@dataclass(frozen=True)
class Zoo:
    """Adapters on disk, and what plain PEFT answers with each, alone."""

    base: Path
    folders: dict[str, Path]
    prompts: dict[str, tuple[int, ...]]
    answers: dict[tuple[str | None, str], list[int]]  # (adapter, whose prompt)

    @property
    def names(self) -> list[str]:
        return list(self.prompts)

    def source(self, digest: str, *, pinned: bool = False) -> AdapterSource:
        return AdapterSource(digest, str(self.folders[digest]), digest, pinned)

    def ask(self, digest: str, adapter: str | None = "same", id: str | None = None) -> Generation:
        """The adapter's own prompt, by default with that adapter."""
        return Generation(
            id=id or digest,
            prompt=self.prompts[digest],
            adapter=digest if adapter == "same" else adapter,
            max_tokens=NEW_TOKENS,
            sampling=GREEDY,
            ignore_eos=True,
        )


def plain_greedy(model: Any, prompt: tuple[int, ...], tokens: int = NEW_TOKENS) -> list[int]:
    ids = torch.tensor([prompt])
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return made[0, len(prompt) :].tolist()


def plain_batch(model: Any, prompts: dict[str, tuple[int, ...]]) -> dict[Any, list[int]]:
    """Static batching with left padding; good enough to tell adapters from one another."""
    width = max(map(len, prompts.values()))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts.values()])
    made = model.generate(
        ids,
        attention_mask=(
            torch.arange(width) >= width - torch.tensor([[len(p)] for p in prompts.values()])
        ).long(),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return {(None, whose): row[width:].tolist() for whose, row in zip(prompts, made, strict=True)}


@pytest.fixture(scope="session")
def zoo(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Each adapter is scaled until its own prompt tells it from the base and all others."""
    root = tmp_path_factory.mktemp("adapters")
    names = [f"sha256-{number}" for number in range(len(SHAPES))]
    folders = {name: root / name for name in names}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        for name, shape in zip(names, SHAPES, strict=True):
            write_adapter(tiny_folder, folders[name], shape)
        prompts = {
            name: tuple(torch.randint(3, 259, (5 + 9 * number,)).tolist())
            for number, name in enumerate(names)
        }
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    answers = {(None, whose): plain_greedy(base, prompt) for whose, prompt in prompts.items()}
    elsewhere = plain_batch(base, prompts)
    tuned: PeftModel = load_with_peft(base, folders[names[0]])
    for name in names[1:]:
        tuned.load_adapter(str(folders[name]), name)
    for name in names:
        tuned.set_adapter("default" if name == names[0] else name)
        elsewhere |= {(name, whose): ids for (_, whose), ids in plain_batch(tuned, prompts).items()}
        answers[name, name] = plain_greedy(tuned, prompts[name])
    answers = {**elsewhere, **answers}
    return Zoo(tiny_folder, folders, prompts, answers)


def write_adapter(base: Path, folder: Path, shape: dict[str, Any], spread: float = 0.3) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():  # PEFT 0.21 reads a property that transformers 5.23 renamed
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **shape))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=spread)
    tuned.save_pretrained(str(folder))


Refuses = Callable[[str], Any]


@pytest.fixture
def refuses() -> Refuses:
    """`with refuses("code") as caught:` — a RefusedError with this code."""

    def check(code: str) -> Any:
        return pytest.raises(RefusedError, check=lambda error: error.code == code)

    return check


@dataclass(frozen=True)
class BankProbe:
    """An engine in a loop of its own, for many tests: only loads that fail."""

    runner: asyncio.Runner
    engine: EmbeddedEngine

    def refusal(self, source: AdapterSource) -> str:
        with pytest.raises(RefusedError) as caught:
            self.runner.run(self.engine.load(replace(source, digest=f"{source}")))
        assert caught.value.code == "bad_adapter"
        return str(caught.value)


@pytest.fixture(scope="module")
def bank(tiny_folder: Path) -> Iterator[BankProbe]:
    model = ModelConfig(name=str(tiny_folder), dtype="float32")
    with asyncio.Runner() as runner:
        engine = EmbeddedEngine(tiny_folder, model, EngineLimits(threads=1), CPU)
        runner.run(engine.start())
        yield BankProbe(runner, engine)
        runner.run(engine.stop())
