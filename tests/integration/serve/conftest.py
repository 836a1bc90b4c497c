"""One server of the real command for all tests here, with adapters that tell on a wrong one."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import openai
import pytest

sys.path.append(str(Path(__file__).parent))  # for what these tests share with the soak

from adapters import Answer, Base, differ
from server import Server

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay")
LATE = ("later", "newer")  # written, and published by the tests
PROMPTS = ("What is the capital of France?", "Name three colours, then count down from ten.")
TOKENS = 24


@dataclass(frozen=True)
class Zoo:
    """A base model, adapters on disk, and greedy answers by (adapter or `base`, prompt)."""

    base: Base
    root: str
    folders: dict[str, Path]
    expected: dict[tuple[str, str], Answer]

    def publish(self, name: str, folder: str | None = None) -> str:
        return self.base.publish(self.root, name, self.folders[folder or name])


@pytest.fixture(scope="session")
def zoo(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Ten published adapters, and two that are not yet."""
    base = Base(small_model)
    root = tmp_path_factory.mktemp("served")
    found = Zoo(base, str(root / "root"), {}, {})
    for seed, name in enumerate([None, *NAMES, *LATE]):
        if name is not None:
            found.folders[name] = root / name
            base.write_adapter(root / name, seed)
        prompts = PROMPTS[: 2 if seed < 5 else 1]
        answers = base.answers(found.folders.get(name or ""), prompts, TOKENS)
        for prompt, answer in zip(prompts, answers, strict=True):
            found.expected[name or "base", prompt] = answer
    for prompt in PROMPTS:  # else an answer of a wrong adapter would look right
        assert differ({name: a for (name, of), a in found.expected.items() if of == prompt})
    for name in NAMES:
        found.publish(name)
    return found


@dataclass(frozen=True)
class Served:
    """The server, a key that may do all, and what it answered before there was any key."""

    server: Server
    zoo: Zoo
    key: str
    before: str
    spans: list[Any]

    @property
    def client(self) -> openai.OpenAI:
        return self.server.client(self.key)

    def model(self, name: str) -> str:
        return str(self.zoo.base.folder) if name == "base" else name

    def ask(self, name: str, prompt: str = PROMPTS[0], **options: Any) -> Any:
        """Create a chat completion, greedy unless said otherwise."""
        return self.client.chat.completions.create(
            model=self.model(name),
            messages=[{"role": "user", "content": prompt}],
            **{"temperature": 0, "max_tokens": TOKENS, **options},
        )

    def answer(self, name: str, prompt: str = PROMPTS[0], *, stream: bool = False) -> Answer:
        """Return a greedy answer's tokens, up to the first special one."""
        answer = self.ask(name, prompt, logprobs=True, stream=stream)
        return tokens_of(answer if stream else [answer])

    def metric(self, name: str) -> float:
        return self.server.metric(name, self.key)

    def new_key(self, *options: str) -> str:
        """Give `ftray keys create`; returns the secret."""
        return _new_key(self.zoo.root, *options)


def tokens_of(parts: Any) -> Answer:
    """Return what each token of an answer, or of a stream's chunks, stands for."""
    choices = [choice for part in parts for choice in part.choices if choice.logprobs]
    tokens = [token for choice in choices for token in choice.logprobs.content]
    kept = takewhile(lambda token: not token.token.startswith("<|"), tokens)
    return [bytes(token.bytes) for token in kept]


@pytest.fixture(scope="session")
def served(
    zoo: Zoo, collector: tuple[str, list[Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A server with room for most adapters, but not for all; Ctrl-C ends it without a trace."""
    sizes = [(zoo.folders[n] / "adapter_model.safetensors").stat().st_size for n in NAMES]
    settings = [
        f"storage={zoo.root}",
        f"model.name={zoo.base.folder}",
        f"engine.adapter_gib={(sum(sizes) - max(sizes) // 2) / 2**30:.6f}",
        "engine.kv_gib=0.2",
        "engine.threads=1",
        f"otlp={collector[0]}",
        f"access_log={Path(zoo.root).parent / 'access.jsonl'}",
    ]
    server = Server(tmp_path_factory.mktemp("server"), settings)
    try:
        server.wait_until_ready()
        first = server.client().chat.completions.create(
            model=NAMES[0], messages=[{"role": "user", "content": "Hi"}], max_tokens=4
        )
        key = _new_key(zoo.root, "--scope", "admin")
        yield Served(server, zoo, key, first.object, collector[1])
        assert server.interrupt() == 0, server.last_words()
        assert server.said.endswith("stopped\n")
    finally:
        left = server.left_over()
    assert left == []


def _new_key(root: str, *options: str) -> str:
    command = [
        sys.executable,
        "-m",
        "ftray",
        "keys",
        "create",
        "tests",
        "--storage",
        root,
        "--json",
    ]
    done = subprocess.run([*command, *options], stdout=subprocess.PIPE, text=True, check=True)
    secret: str = json.loads(done.stdout)["secret"]
    return secret
