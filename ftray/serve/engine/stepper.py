"""The thread that owns the model: it admits, computes and publishes, one step after another."""

import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ftray.errors import first_line
from ftray.serve.engine.batch import Batch, Joiner
from ftray.serve.engine.grammar import Vocabulary
from ftray.serve.engine.job import Job, Row, describe
from ftray.serve.engine.limits import EngineLimits
from ftray.serve.engine.queue import FairQueue, Shares
from ftray.serve.engine.sampler import choose
from ftray.serve.protocol import Piece, Refusal, RefusedError

logger = logging.getLogger(__name__)

_DEAD_AFTER = 3  # failed steps in a row


@dataclass
class Work:
    """What is done now, and has been so far; other threads may read it."""

    rows: int = 0
    waiting: int = 0
    kv_bytes: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0


class Stepper(threading.Thread):
    """Everything here but `tell`, and reading the counts, runs on its own thread."""

    def __init__(
        self,
        batch: Batch,
        vocabulary: Vocabulary,
        limits: EngineLimits,
        publish: Callable[[list[Piece]], None],
    ) -> None:
        super().__init__(name="ftray-engine", daemon=True)
        self.batch, self.work = batch, Work()
        self.waiting = FairQueue()
        self.is_dead = False
        self._vocabulary, self._limits = vocabulary, limits
        self._publish = publish
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._joiners: list[Joiner] = []
        self._pieces: list[Piece] = []
        self._failures = 0
        self._is_told_to_end = False

    def tell(self, command: Callable[[], None]) -> None:
        """Have something done before the next step. For other threads."""
        self._commands.put(command)

    def run(self) -> None:
        """Step until told to end."""
        if self._limits.threads is not None:
            _take_threads(self._limits.threads)
        with torch.inference_mode():
            while not self._is_told_to_end:
                try:
                    self._obey()
                    self._step()
                    self._failures = 0
                except Exception as error:  # a process edge: readers must hear of it
                    logger.exception("a step of the engine failed")
                    self._survive(error)
                self._flush()

    def submit(self, job: Job) -> None:
        """Take a generation into the queue."""
        if self.is_dead:
            self._fail(job, RefusedError("the engine has died", "restart it"))
        else:
            self.waiting.add(job)

    def cancel(self, id: str) -> None:
        """Free whatever a generation holds."""
        self._drop(lambda job: job.generation.id == id)

    def fail_all(self, code: Refusal, reason: str) -> None:
        """End everything with an error piece."""
        for job in self._jobs():
            self._fail(job, RefusedError(reason, code=code))

    def end(self) -> None:
        """Let the thread end after this command."""
        self._is_told_to_end = True

    def _obey(self) -> None:
        """Run the commands that have come; wait for one while there is nothing to compute."""
        while not self._is_told_to_end:
            is_idle = not (self.batch.rows or self._joiners or len(self.waiting))
            try:
                command = self._commands.get(block=is_idle)
            except queue.Empty:
                return
            command()
            self._flush()

    def _step(self) -> None:
        self._expire()
        self._admit()
        if self._joiners:
            self._prefill()
        if self.batch.rows:
            self._decode()
        self.work.steps += 1

    def _expire(self) -> None:
        for job in [job for job in self._jobs() if job.is_late]:
            reason = f"it was not done within {job.generation.deadline_seconds:g} seconds"
            self._fail(job, RefusedError(reason, code="deadline"))

    def _admit(self) -> None:
        """Give free rows to those whose turn it is, as long as their keys and values fit."""
        while len(placed := self._placed()) < self._limits.rows:
            owners = Counter(row.job.generation.owner for row in placed)
            shares = Shares(owners, Counter(row.adapter for row in placed))
            turn = self.waiting.next(shares, self._limits.rows)
            if turn is None:
                return
            rows = turn.job.starters(min(turn.rows, self._limits.rows - len(placed)))
            while len(rows) > 1 and not self._fits([*placed, *rows]):
                rows.pop()
            if placed and not self._fits([*placed, *rows]):
                return  # the next one waits for room, and nobody overtakes it
            for row in rows:
                turn.job.waiting.remove(row)
            self._joiners.append(Joiner(rows[0], rows[1:], rows[0].tokens[:], turn=self.work.steps))
            self.waiting.advance(turn.job)

    def _fits(self, rows: Sequence[Row]) -> bool:
        return self.batch.fits([row.length + 1 for row in rows])

    def _placed(self) -> list[Row]:
        return [*self.batch.rows, *(row for joiner in self._joiners for row in joiner.rows)]

    def _prefill(self) -> None:
        """Compute some prompts, those first that have waited longest since they were served."""
        self._joiners.sort(key=lambda joiner: joiner.turn)
        served = self._joiners
        before = {joiner: joiner.done for joiner in served}
        done = self.batch.prefill(served, self._limits.prefill_tokens)
        for joiner in served:
            if joiner.done > before[joiner]:
                self.work.prompt_tokens += joiner.done - before[joiner]
                joiner.turn = self.work.steps + 1
        self._joiners = [joiner for joiner in served if joiner not in done.joiners]
        for joiner in done.joiners:
            self.batch.join(joiner)
        if done.logits is not None:
            places = [i for i, joiner in enumerate(done.joiners) for _ in joiner.rows]
            self._take([row for j in done.joiners for row in j.rows], done.logits[places])

    def _decode(self) -> None:
        """One token for each row; where keys and values run out, who came last starts again."""
        while not self.batch.fits([row.length for row in self.batch.rows]):
            row = max(self.batch.rows, key=lambda row: row.job.submitted)
            self.batch.leave(row, is_spoilt=False)
            self.waiting.put_back(row)
        self._take(list(self.batch.rows), self.batch.decode())

    def _take(self, rows: Sequence[Row], logits: Tensor) -> None:
        """Give each row its next token from logits [rows, vocab]."""
        tokens = choose(logits, [row.draw for row in rows])
        for row, token, values in zip(rows, tokens, logits, strict=True):
            if not row.job.open:
                continue  # another of its choices has just failed
            if token is None:
                self.batch.leave(row, is_spoilt=True)
                reason = "its logits are no numbers, or its grammar allows no token"
                self._fail(row.job, RefusedError(reason))
                continue
            wish = row.job.generation.logprobs
            shown = None if wish is None else describe(token, values, wish, self._vocabulary)
            try:
                piece = row.take(token, shown)
            except RefusedError as error:
                self._fail(row.job, error)
                continue
            self.work.answer_tokens += 1
            self._pieces.append(piece)
            if piece.finish:
                self.batch.leave(row, is_spoilt=False)
                row.job.open -= 1

    def _fail(self, job: Job, error: RefusedError) -> None:
        self._pieces.append(Piece(job.generation.id, error=error))
        job.open = 0
        self._drop(lambda other: other is job)

    def _jobs(self) -> list[Job]:
        """All generations that have not ended."""
        return list(dict.fromkeys([*self.waiting, *(row.job for row in self._placed())]))

    def _drop(self, is_meant: Callable[[Job], bool]) -> None:
        for job in [job for job in self.waiting if is_meant(job)]:
            self.waiting.remove(job)
        self._joiners = [joiner for joiner in self._joiners if not is_meant(joiner.row.job)]
        for row in [row for row in self.batch.rows if is_meant(row.job)]:
            self.batch.leave(row, is_spoilt=False)

    def _survive(self, error: Exception) -> None:
        """End what was being computed; what waits is tried, unless it keeps on failing."""
        self._failures += 1
        self.is_dead = self._failures >= _DEAD_AFTER
        reason = f"the engine failed: {first_line(error)}"
        failed = self._jobs() if self.is_dead else [row.job for row in self._placed()]
        self._joiners = []
        self.batch.clear()
        for job in dict.fromkeys(failed):
            self._fail(job, RefusedError(reason))

    def _flush(self) -> None:
        self.work.rows, self.work.waiting = len(self._placed()), len(self.waiting)
        self.work.kv_bytes = self.batch.bytes()
        if self._pieces:
            self._publish(self._pieces)
            self._pieces = []


def _take_threads(count: int) -> None:
    """Have torch compute with so many threads here, and elsewhere with as many as before."""
    others = torch.get_num_threads()  # asked first, a thread keeps what it is told from then on
    torch.set_num_threads(count)
    reset = threading.Thread(target=torch.set_num_threads, args=(others,))
    reset.start()
    reset.join()
