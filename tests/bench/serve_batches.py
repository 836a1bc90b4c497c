"""The embedded engine against PEFT and `generate`, on the same threads; vLLM after them."""

import asyncio
import os
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ftray.config.run import ModelConfig
from ftray.config.serve import BasePrecision
from ftray.model.export import load_with_peft
from ftray.serve.engine.engine import EmbeddedEngine
from ftray.serve.engine.limits import EngineLimits
from ftray.serve.protocol import AdapterSource, Engine, Generation, Sampling
from ftray.serve.vllm.engine import VllmEngine
from ftray.serve.vllm.options import VllmOptions

CPU = torch.device("cpu")
THREADS = 2
PROMPT_TOKENS = 16
SPIN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # how OpenMP's threads wait
GREEDY = Sampling(temperature=0)
PRECISIONS: list[tuple[str, str, BasePrecision]] = [
    ("bf16", "bfloat16", "same"),
    ("int8", "float32", "int8"),
    ("nf4", "float32", "nf4"),
]
Row = tuple[str | None, int]  # the adapter and how many tokens
Sides = dict[str, Callable[[], Awaitable[None]]]


class Batches:
    """Both sides, loaded, with the same adapters."""

    def __init__(self, model: Path, folders: dict[str, Path], tokens: int) -> None:
        self._model, self._folders, self._tokens = model, folders, tokens

    def measure(self, rounds: int) -> dict[str, Any]:
        """Return seconds of each side by round, and the ratios that are aimed at."""
        engine = EmbeddedEngine(self._model, self._config, self._limits, CPU)
        with _peers(self._model, self._folders) as peers:
            seconds = asyncio.run(self._rounds("engine", engine, self._peft_sides(peers), rounds))
        return {"seconds": seconds, "ratios": _ratios(seconds), "tokens": self._tokens}

    def measure_precisions(self, rounds: int) -> dict[str, list[float]]:
        """Return the seconds of engines that keep the base in less, one after another."""
        seconds: dict[str, list[float]] = {}
        for name, dtype, precision in PRECISIONS:
            model = ModelConfig.model_validate({"name": str(self._model), "dtype": dtype})
            engine = EmbeddedEngine(self._model, model, self._limits, CPU, precision)
            seconds |= asyncio.run(self._rounds(f"engine in {name}", engine, {}, rounds))
        return seconds

    def measure_vllm(self, rounds: int) -> dict[str, list[float]]:
        """Return the same seconds of a vLLM server that has both cores for itself."""
        options = VllmOptions(kv_bytes=1 << 30, adapter_bytes=1 << 30, largest_rank=16)
        engine = VllmEngine(self._model, self._config, options, CPU)
        return asyncio.run(self._rounds("vLLM", engine, {}, rounds))

    @property
    def _limits(self) -> EngineLimits:
        return EngineLimits(rows=16, kv_bytes=1 << 29, adapter_bytes=1 << 30, threads=THREADS)

    @property
    def _config(self) -> ModelConfig:
        return ModelConfig.model_validate({"name": str(self._model), "dtype": "float32"})

    async def _rounds(
        self, name: str, bare: Engine, others: Sides, rounds: int
    ) -> dict[str, list[float]]:
        engine = _Engine(bare)
        await engine.start(self._folders)
        try:
            sides = self._engine_sides(name, engine) | others
            seconds: dict[str, list[float]] = {side: [] for side in sides}
            for turn in range(rounds + 1):  # the first one warms up
                order = list(sides) if turn % 2 else list(sides)[::-1]
                for side in order:
                    started = time.perf_counter()
                    await sides[side]()
                    if turn:
                        seconds[side].append(time.perf_counter() - started)
            return seconds
        finally:
            await engine.stop()

    def _engine_sides(self, name: str, engine: "_Engine") -> Sides:
        return {
            f"{name}, 8 rows of the base": lambda: engine.together(_based(self._rows)),
            f"{name}, 8 rows of 8 adapters": lambda: engine.together(self._rows),
            f"{name}, 16 mixed streams": lambda: engine.together(self._streams),
            f"{name}, the 16 one at a time": lambda: engine.one_by_one(self._streams),
            f"{name}, 16 streams of the base": lambda: engine.together(_based(self._streams)),
        }

    def _peft_sides(self, peers: ProcessPoolExecutor) -> Sides:
        windows = [self._streams[:8], self._streams[8:]]
        based = [_based(window) for window in windows]

        async def generate(windows: list[list[Row]]) -> None:
            await asyncio.wrap_future(peers.submit(_generate, windows))

        return {
            "generate, 8 rows of the base": lambda: generate([_based(self._rows)]),
            "PEFT adapter_names, 8 rows of 8 adapters": lambda: generate([self._rows]),
            "PEFT adapter_names, the 16 in 2 windows": lambda: generate(windows),
            "generate, 16 of the base in 2 windows": lambda: generate(based),
        }

    @property
    def _rows(self) -> list[Row]:
        return [(name, self._tokens) for name in self._folders]

    @property
    def _streams(self) -> list[Row]:
        """16 of every length from a third to all, as people ask."""
        names, tokens = list(self._folders), self._tokens
        return [
            (names[number % 8], tokens // 3 + (number * 5) % (tokens - tokens // 3 + 1))
            for number in range(16)
        ]


def _ratios(seconds: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    def ratio(one: str, other: str) -> float:
        pairs = zip(seconds[one], seconds[other], strict=True)
        return median(a / b for a, b in pairs)

    streams = "engine, 16 mixed streams"
    return {
        "8 adapters to base, engine": {
            "value": ratio("engine, 8 rows of 8 adapters", "engine, 8 rows of the base"),
            "aim": "≤ 1.25",
        },
        "8 adapters to base, PEFT": {
            "value": ratio(
                "PEFT adapter_names, 8 rows of 8 adapters", "generate, 8 rows of the base"
            ),
            "aim": "",
        },
        "engine to generate, 8 rows of the base": {
            "value": ratio("engine, 8 rows of the base", "generate, 8 rows of the base"),
            "aim": "",
        },
        "16 streams: times faster than one at a time": {
            "value": ratio("engine, the 16 one at a time", streams),
            "aim": "≥ 4",
        },
        "16 streams: times faster than PEFT in 2 windows": {
            "value": ratio("PEFT adapter_names, the 16 in 2 windows", streams),
            "aim": "≥ 1.2",
        },
        "16 streams of the base: times faster than generate in 2 windows": {
            "value": ratio(
                "generate, 16 of the base in 2 windows", "engine, 16 streams of the base"
            ),
            "aim": "≥ 1.2",
        },
    }


def _based(rows: list[Row]) -> list[Row]:
    return [(None, tokens) for _, tokens in rows]


def _prompts(rows: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(3)
    return torch.randint(1000, 40000, (rows, PROMPT_TOKENS), generator=draw).tolist()


class _Engine:
    """An engine with one reader."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ends: dict[str, asyncio.Future[None]] = {}
        self._number = 0

    async def start(self, folders: dict[str, Path]) -> None:
        await self._engine.start()
        self._reader = asyncio.create_task(self._read())
        for name, folder in folders.items():
            await self._engine.load(AdapterSource(name, str(folder), name))

    async def stop(self) -> None:
        await self._engine.stop()
        await self._reader

    async def together(self, rows: list[Row]) -> None:
        prompts = _prompts(len(rows))
        ends = [await self._submit(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]
        await asyncio.gather(*ends)

    async def one_by_one(self, rows: list[Row]) -> None:
        for row, prompt in zip(rows, _prompts(len(rows)), strict=True):
            await (await self._submit(row, prompt))

    async def _submit(self, row: Row, prompt: list[int]) -> asyncio.Future[None]:
        self._number += 1
        id = str(self._number)
        end = self._ends[id] = asyncio.get_running_loop().create_future()
        adapter, tokens = row
        wish = Generation(id, tuple(prompt), adapter, tokens, GREEDY, ignore_eos=True)
        await self._engine.submit(wish)
        return end

    async def _read(self) -> None:
        async for pieces in self._engine.pieces():
            for piece in pieces:
                if piece.error:
                    self._ends[piece.id].set_exception(piece.error)
                elif piece.finish:
                    self._ends[piece.id].set_result(None)


@contextmanager
def _peers(model: Path, folders: dict[str, Path]) -> Iterator[ProcessPoolExecutor]:
    """A process of the peers' own, with OpenMP as it comes: its threads and the engine's, in one
    process, would keep each other from spinning.
    """
    ours = {name: os.environ.pop(name) for name in SPIN if name in os.environ}
    try:
        with ProcessPoolExecutor(1, get_context("spawn"), _load, (model, folders)) as peers:
            peers.submit(os.getpid).result()  # it has started, and has read its environment
            os.environ |= ours
            yield peers
    finally:
        os.environ |= ours


_peft: "_Peft"


def _load(model: Path, folders: dict[str, Path]) -> None:
    global _peft  # of the peers' process
    torch.set_num_threads(THREADS)
    _peft = _Peft(model, folders)


def _generate(windows: list[list[Row]]) -> None:
    for window in windows:
        _peft.batch(window)


class _Peft:
    """Plain `generate`, with PEFT's mixed batches for adapters."""

    def __init__(self, model: Path, folders: dict[str, Path]) -> None:
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self._plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        first, *others = folders
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._tuned = load_with_peft(base, folders[first])
            for name in others:
                self._tuned.load_adapter(str(folders[name]), name)
        self._tuned.eval()
        self._names = {first: "default", **{name: name for name in others}}

    def batch(self, rows: list[Row]) -> None:
        """Generate as many tokens as the longest row wants: a static batch runs to its end."""
        tokens = max(tokens for _, tokens in rows)
        ids = torch.tensor(_prompts(len(rows)))
        options = {
            "attention_mask": torch.ones_like(ids),
            "max_new_tokens": tokens,
            "min_new_tokens": tokens,
            "do_sample": False,
            "pad_token_id": 0,
        }
        with torch.no_grad():
            if rows[0][0] is None:
                self._plain.generate(ids, **options)
            else:
                names = [self._names[name or ""] for name, _ in rows]
                self._tuned.generate(input_ids=ids, adapter_names=names, **options)
