"""Generations that run on a server, each a stream of its own, merged for one reader."""

import asyncio
import logging
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from ftray.errors import first_line
from ftray.serve.engine.ledger import Ledger
from ftray.serve.protocol import Generation, Piece, RefusedError
from ftray.serve.vllm.answers import AnswerReader
from ftray.serve.vllm.client import Body, VllmClient, lost

logger = logging.getLogger(__name__)


@dataclass
class StreamCounts:
    """What has come in."""

    steps: int = 0  # batches of pieces
    prompt_tokens: int = 0
    answer_tokens: int = 0


class Streams:
    """Runs on the engine's loop; tells the ledger, once in each turn of the loop."""

    def __init__(self, ledger: Ledger) -> None:
        self.counts = StreamCounts()
        self._ledger = ledger
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._tokens: dict[str, int] = {}  # prompt and answer, of what runs
        self._news: list[Piece] = []

    @property
    def tokens(self) -> int:
        """Of all that run."""
        return sum(self._tokens.values())

    def run(
        self, generation: Generation, client: VllmClient, body: Body, reader: AnswerReader
    ) -> None:
        """Ask for it; everything after this is told in pieces."""
        id = generation.id
        self._tokens[id] = len(generation.prompt)
        self.counts.prompt_tokens += len(generation.prompt)
        seconds = generation.deadline_seconds
        end = None if seconds is None else asyncio.get_running_loop().time() + seconds
        task = asyncio.create_task(self._follow(id, client, body, reader, end))
        self._tasks[id] = task
        task.add_done_callback(partial(self._forget, id))

    def cancel(self, id: str) -> None:
        """Close its stream, which ends it on the server."""
        if task := self._tasks.get(id):
            task.cancel()

    def fail_all(self, error: RefusedError) -> None:
        """End what runs with an error piece, now."""
        self._flush()  # by itself: what has ended in this turn of the loop ends once
        self.tell([Piece(id, error=error) for id in self._tasks])
        self._flush()
        for task in self._tasks.values():
            task.cancel()

    def tell(self, pieces: list[Piece]) -> None:
        """Have them read with all others of this turn of the loop."""
        if not self._news and pieces:
            asyncio.get_running_loop().call_soon(self._flush)
        self._news += pieces

    async def _follow(
        self, id: str, client: VllmClient, body: Body, reader: AnswerReader, end: float | None
    ) -> None:
        try:
            async with asyncio.timeout_at(end):
                await self._read(id, client, body, reader)
        except RefusedError as error:
            self._fail(id, reader, error)
        except TimeoutError:
            late = RefusedError("the answer took too long", code="deadline")
            self._fail(id, reader, late)
        except Exception as error:  # whoever waits for the answer would wait for ever
            logger.exception("reading an answer of vLLM's failed")
            self._fail(id, reader, RefusedError(first_line(error)))

    def _fail(self, id: str, reader: AnswerReader, error: RefusedError) -> None:
        if not reader.is_done:  # else only the closing of its stream has failed
            self.tell([Piece(id, error=error)])

    async def _read(self, id: str, client: VllmClient, body: Body, reader: AnswerReader) -> None:
        async with aclosing(client.complete(body)) as chunks:
            async for chunk in chunks:
                pieces = reader.read(chunk)
                count = sum(len(piece.tokens) for piece in pieces)
                self._tokens[id] += count
                self.counts.answer_tokens += count
                self.tell(pieces)
                if reader.is_done:
                    return
        raise lost(EOFError())

    def _forget(self, id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(id) is task:
            del self._tasks[id], self._tokens[id]

    def _flush(self) -> None:
        if self._news:
            news, self._news = self._news, []
            self.counts.steps += 1
            self._ledger.deliver(news)
