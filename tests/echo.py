"""An engine without a model, for whatever stands above engines."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLTokenizer
from transformers import AutoTokenizer

from ftray.serve.protocol import (
    AdapterSource,
    EngineInfo,
    EngineStats,
    Generation,
    Piece,
    RefusedError,
    Token,
    TokenLogprob,
)

ECHO_BASE = "org/tiny-base"


class EchoEngine:
    """Answers with the last user message, behind the adapter's digest: one character a step.

    It keeps the protocol: stop strings, limits, logprobs, grammars (an answer that breaks one is
    refused), cancels, a queue and deadlines. A message `!crash` ends with an error after 3 steps.
    """

    def __init__(self, folder: Path, *, step_seconds: float = 0.0, room: int = 64) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._step_seconds = step_seconds
        self._room = room
        self._out: asyncio.Queue[list[Piece]] = asyncio.Queue()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.loaded: dict[str, AdapterSource] = {}
        self.seen: list[Generation] = []
        self.cancelled: list[str] = []

    async def start(self) -> EngineInfo:
        return EngineInfo(
            "echo", ECHO_BASE, 4096, "none", is_deterministic=True, notes=("it echoes",)
        )

    async def load(self, source: AdapterSource) -> None:
        if not (Path(source.folder) / "adapter_config.json").exists():
            raise RefusedError(f"{source.name} has no adapter_config.json", code="bad_adapter")
        self.loaded[source.digest] = source

    async def submit(self, generation: Generation) -> None:
        if len(self._tasks) >= self._room:
            raise RefusedError("too many are waiting", code="queue_full")
        if generation.adapter is not None and generation.adapter not in self.loaded:
            raise RefusedError("not loaded", code="bad_adapter")
        answer = self._answer(generation)
        _check_grammar(generation.grammar, answer)
        self.seen.append(generation)
        self._tasks[generation.id] = asyncio.create_task(self._run(generation, answer))

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        while True:
            yield await self._out.get()

    def cancel(self, id: str) -> None:
        if task := self._tasks.pop(id, None):
            task.cancel()
            self.cancelled.append(id)

    def stats(self) -> EngineStats:
        busy = len(self._tasks)
        return EngineStats(busy, 0, 0, 1, len(self.loaded), 0, 1, 1, 0.1, 0, 0, 7, 5, 3, 0)

    async def drain(self, seconds: float) -> None: ...

    async def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    def _answer(self, generation: Generation) -> str:
        text = self._tokenizer.decode(list(generation.prompt))
        said = text.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
        return (f"[{generation.adapter[:8]}] " if generation.adapter else "") + said

    async def _run(self, generation: Generation, answer: str) -> None:
        cut = min((i for stop in generation.stop if (i := answer.find(stop)) >= 0), default=None)
        kept = answer[:cut][: generation.max_tokens]
        finish = "length" if cut is None and len(answer) > generation.max_tokens else "stop"
        for number, character in enumerate(kept):
            await asyncio.sleep(self._step_seconds)
            if number == 3 and "!crash" in answer:
                error = RefusedError("the engine has stumbled", code="internal")
                self._end(generation, [Piece(generation.id, error=error)])
                return
            self._put(generation, character, finish if number == len(kept) - 1 else None)
        if not kept:
            self._put(generation, "", finish)
        self._tasks.pop(generation.id, None)

    def _put(self, generation: Generation, text: str, finish: Any) -> None:
        tokens = _tokens(text, generation.logprobs)
        self._out.put_nowait(
            [Piece(generation.id, i, text, tokens, finish) for i in range(generation.n)]
        )

    def _end(self, generation: Generation, pieces: list[Piece]) -> None:
        self._tasks.pop(generation.id, None)
        self._out.put_nowait(pieces)


def _tokens(text: str, logprobs: int | None) -> tuple[Token, ...]:
    """A token a byte, as the tiny tokenizer has it; the likeliest others are capital letters."""
    if logprobs is None:
        return tuple(Token(byte) for byte in text.encode())
    top = tuple(TokenLogprob(65 + i, bytes([65 + i]), -1.0 - i) for i in range(logprobs))
    return tuple(Token(b, TokenLogprob(b, bytes([b]), -0.5), top) for b in text.encode())


def _check_grammar(grammar: str | None, answer: str) -> None:
    if grammar is None:
        return
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, grammar)
    ids = tokenizer.tokenize_str(answer)
    if matcher.try_consume_tokens(ids) < len(ids) or not matcher.is_accepting():
        raise RefusedError(f"'{answer}' breaks the grammar", code="bad_grammar")
