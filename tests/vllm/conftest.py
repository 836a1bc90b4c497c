"""Both engines over a small real model, to be held to the same answers; `make test-vllm`.

One engine of each kind lives for the whole run: vLLM takes most of a minute to start.
"""

import asyncio
import os
import sys
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2]))  # for what the embedded engine's tests share

from ftray.config.run import ModelConfig
from ftray.serve.engine.engine import EmbeddedEngine
from ftray.serve.engine.limits import EngineLimits
from ftray.serve.protocol import Engine, Generation
from ftray.serve.vllm.engine import VllmEngine
from ftray.serve.vllm.options import PYTHON_VARIABLE, VllmOptions
from tests.integration.conftest import small_model as small_model
from tests.unit.serve.engine.conftest import Client, Zoo
from tests.unit.serve.engine.conftest import refuses as refuses
from tests.vllm.adapters import make_zoo

CPU = torch.device("cpu")
ROOM = 10  # adapters in vLLM's memory, of which 8 fit into one batch
_PER_RANK = 2 * (
    2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536)
)  # 2 layers of the small model
OPTIONS = VllmOptions(
    rows=12,
    waiting=40,
    kv_bytes=1 << 28,
    adapter_bytes=ROOM * _PER_RANK * 64 * 4,
    largest_rank=64,
    max_length=1024,
    eager=True,
    backoff_seconds=0.1,
    failure_seconds=0.1,
    lease_seconds=0.5,
)


@pytest.fixture(scope="session")
def zoo(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Of a real model: vLLM has no kernels for the tiny one's heads of 16."""
    return make_zoo(small_model, tmp_path_factory.mktemp("adapters"))


@dataclass(frozen=True)
class Bench:
    """A running engine, its reader, and the loop that both live in."""

    kind: str
    runner: asyncio.Runner
    client: Client

    @property
    def engine(self) -> Engine:
        return self.client.engine

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """What hangs fails."""
        self.runner.run(asyncio.wait_for(coroutine, 240))

    def ask(self, zoo: Zoo, prefix: str, mine: str, adapter: str | None = "same") -> Generation:
        """An adapter's own prompt, under an id of its own."""
        return zoo.ask(mine, adapter, f"{prefix}-{mine}-{adapter}")

    async def load(self, zoo: Zoo) -> None:
        for name in zoo.names:
            await self.engine.load(zoo.source(name))


@pytest.fixture(scope="session", params=["embedded", "vllm"])
def bench(request: pytest.FixtureRequest, zoo: Zoo) -> Iterator[Bench]:
    """Each test runs on both."""
    if PYTHON_VARIABLE not in os.environ:
        pytest.skip(f"{PYTHON_VARIABLE} names no environment with vLLM: make test-vllm")
    kind = request.param
    with asyncio.Runner() as runner:
        engine = embedded(zoo.base) if kind == "embedded" else vllm(zoo.base)
        client = Client(engine, runner.run(engine.start()))
        reader = runner.get_loop().create_task(client.read())
        bench = Bench(kind, runner, client)
        runner.run(bench.load(zoo))
        yield bench
        runner.run(engine.stop())
        runner.run(asyncio.wait_for(reader, 10))


def embedded(folder: Path) -> Engine:
    model = ModelConfig(name=str(folder), dtype="float32")
    limits = EngineLimits(rows=12, waiting=40, kv_bytes=1 << 28, max_length=1024, threads=1)
    return EmbeddedEngine(folder, model, limits, CPU)


def vllm(folder: Path) -> Engine:
    model = ModelConfig(name=str(folder), dtype="float32")
    return VllmEngine(folder, model, OPTIONS, CPU)
