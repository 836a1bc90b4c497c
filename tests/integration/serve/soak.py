"""Many requests over more adapters than there is room for, with a replica killed among them.

`python tests/integration/serve/soak.py --requests 1000`. Exit code 1 if one answer is wrong, if an
error is not a clean one, if the server is not ready again in time, or if its memory grows.
"""

import argparse
import itertools
import json
import random
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path

import httpx2
import openai
from adapters import Answer, Base
from rich.console import Console
from server import Server

from ftray.config.run import BUILTIN_MODEL, ModelConfig
from ftray.model.folder import fetch

PROMPTS = ("What is the capital of France?", "Name three colours, then count down from ten.")
TOKENS = 24
READY_SECONDS = 30.0
GROWTH = 1.1  # of memory, from after the first quarter (and the kill) to the end
CLEAN = ("503 unavailable", "503 draining", "429 queue_full", "stream unavailable")
_TRIES = 60  # of one request, half a second apart


@dataclass
class Found:
    """What came of all requests."""

    requests: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    evictions: float = 0.0
    seconds: float = 0.0
    ready_seconds: float | None = None
    memory_mb: dict[str, list[float]] = field(default_factory=dict)

    @property
    def grown(self) -> list[str]:
        """The processes whose memory has grown, from the middle of the run to its end."""
        return [
            name
            for name, mb in self.memory_mb.items()
            if len(mb) > 3 and mb[-1] > GROWTH * mb[len(mb) // 2]
        ]

    @property
    def is_green(self) -> bool:
        """Whether everything was as it should be."""
        is_ready = self.ready_seconds is None or self.ready_seconds <= READY_SECONDS
        return not self.wrong and not self.grown and is_ready and "right" in self.outcomes


def main() -> int:
    asked = _arguments()
    with tempfile.TemporaryDirectory(prefix="ftray-soak-") as made:
        folder = asked.folder or Path(made)
        model = asked.model or fetch(ModelConfig(name=BUILTIN_MODEL), str(folder / "root"))
        expected = _publish(folder, Base(model), asked.adapters)
        settings = _settings(folder, model, asked)
        server = Server(folder / "server", settings)
        try:
            found = Soak(server.wait_until_ready(), expected, asked).run()
            code = server.interrupt(90)
            if code:
                found.wrong.append(f"Ctrl-C ended with {code}")
        finally:
            found_left = server.left_over()
        found.wrong += [f"left over: {title}" for title in found_left]
    if asked.json:
        asked.json.write_text(json.dumps(asdict(found), indent=1) + "\n")
    console = Console(width=100, highlight=False)
    console.print(asdict(found))
    console.print("green" if found.is_green else f"RED: grown {found.grown}, seed {asked.seed}")
    return 0 if found.is_green else 1


class Soak:
    """Clients with a list of requests each, and somebody who kills the engine's replica."""

    def __init__(
        self, server: Server, expected: dict[tuple[str, str], Answer], asked: argparse.Namespace
    ) -> None:
        self._server, self._expected, self._asked = server, expected, asked
        self._found = Found()
        self._lock = threading.Lock()
        self._draw = random.Random(asked.seed)

    def run(self) -> Found:
        """Do all requests; the replica is killed after the first quarter of them."""
        started = time.monotonic()
        cases = self._draw.choices(list(self._expected), k=self._asked.requests)
        quarters = [cases[: len(cases) // 4], cases[len(cases) // 4 :]]
        with ThreadPoolExecutor(self._asked.clients) as threads:
            list(threads.map(self._do, quarters[0]))
            rest = [threads.submit(self._do, case) for case in quarters[1]]
            if self._asked.kill:
                self._kill()
            for done in rest:
                done.result()
        self._found.evictions = self._server.metric("ftray_engine_evictions_total")
        self._found.seconds = round(time.monotonic() - started, 1)
        return self._found

    def _do(self, case: tuple[str, str]) -> None:
        outcomes = [*itertools.islice(self._tries(case), _TRIES)]
        with self._lock:
            found = self._found
            found.requests += 1
            for outcome in outcomes:
                found.outcomes[outcome] = found.outcomes.get(outcome, 0) + 1
            if outcomes[-1] != "right":
                found.wrong.append(f"{case}: {outcomes[-1]}")
            if found.requests % max(1, self._asked.requests // 20) == 0:
                self._weigh()

    def _tries(self, case: tuple[str, str]):
        """Yield what each try comes to, until one is no clean error."""
        while True:
            outcome = self._try(case)
            yield outcome
            if outcome not in CLEAN:
                return
            time.sleep(0.5)

    def _try(self, case: tuple[str, str]) -> str:
        name, prompt = case
        try:
            answer = self._server.client().chat.completions.create(
                model=name,
                messages=[{"role": "user", "content": prompt}],
                temperature=0,
                max_tokens=TOKENS,
                logprobs=True,
                stream=True,
            )
            choices = [choice for chunk in answer for choice in chunk.choices]
        except openai.APIStatusError as error:
            has_wait = error.status_code == 429 or "retry-after" in error.response.headers
            return f"{error.status_code} {error.code}{'' if has_wait else ' without Retry-After'}"
        except openai.APIError as error:
            return f"stream {error.code}"
        except httpx2.HTTPError as error:
            return f"cut: {error!r}"
        tokens = [t for choice in choices if choice.logprobs for t in choice.logprobs.content]
        kept = takewhile(lambda token: not token.token.startswith("<|"), tokens)
        said = [bytes(token.bytes) for token in kept]
        return "right" if said == self._expected[case] else f"wrong: {said}"

    def _kill(self) -> None:
        time.sleep(2)  # the clients are at it again
        [engine] = self._server.replicas("Engine")
        engine.kill()
        killed = time.monotonic()
        time.sleep(1)
        while self._server.get("/readyz").status_code != 200:
            if time.monotonic() - killed > 4 * READY_SECONDS:
                break
            time.sleep(0.2)
        self._found.ready_seconds = round(time.monotonic() - killed, 1)

    def _weigh(self) -> None:
        for name in ("Engine", "Api", "Proxy"):
            used = [process.memory_info().rss for process in self._server.replicas(name)]
            if used and (name != "Engine" or self._found.ready_seconds or not self._asked.kill):
                self._found.memory_mb.setdefault(name, []).append(round(sum(used) / 1e6, 1))


def _publish(folder: Path, base: Base, adapters: int) -> dict[tuple[str, str], Answer]:
    """Publish adapters that all answer each prompt differently: else a wrong one would not show."""
    plain = base.answers(None, PROMPTS, TOKENS)
    taken = {(prompt, *answer) for prompt, answer in zip(PROMPTS, plain, strict=True)}
    expected: dict[tuple[str, str], Answer] = {}
    for seed in itertools.count():
        name = f"adapter-{seed}"
        base.write_adapter(folder / name, seed)
        answers = dict(zip(PROMPTS, base.answers(folder / name, PROMPTS, TOKENS), strict=True))
        new = {(prompt, *answer) for prompt, answer in answers.items()}
        if new & taken:
            continue
        taken |= new
        expected |= {(name, prompt): answer for prompt, answer in answers.items()}
        base.publish(str(folder / "storage"), name, folder / name)
        if len(expected) == adapters * len(PROMPTS):
            break
    return expected


def _settings(folder: Path, model: Path, asked: argparse.Namespace) -> list[str]:
    files = sorted(path.stat().st_size for path in folder.glob("*/adapter_model.safetensors"))
    room = sum(files) / len(files) * asked.room
    return [
        f"storage={folder / 'storage'}",
        f"model.name={model}",
        f"engine.adapter_gib={max(room, files[-1]) / 2**30:.6f}",
        "engine.kv_gib=0.5",
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=1000, help="how many")
    parser.add_argument("--adapters", type=int, default=50, help="how many are asked for")
    parser.add_argument("--room", type=int, default=16, help="how many fit, of middling size")
    parser.add_argument("--clients", type=int, default=12, help="requests at a time")
    parser.add_argument("--seed", type=int, default=0, help="decides who is asked when")
    parser.add_argument("--no-kill", dest="kill", action="store_false", help="spare the replica")
    parser.add_argument("--model", type=Path, help="a base model's folder")
    parser.add_argument("--folder", type=Path, help="where to work, and to leave what was made")
    parser.add_argument("--json", type=Path, help="a file for all that was found")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
