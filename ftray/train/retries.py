"""Whether to start a group of workers again after one has ended, how, and after what wait."""

from dataclasses import dataclass
from typing import Literal

from ray.exceptions import RayActorError

from ftray.errors import TrainError, first_line
from ftray.train.failures import cause_of, explained, is_loss, is_out_of_memory, is_preemption

_MOST_PREEMPTIONS = 10  # in a row without a step in between
_LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class Ended:
    """How a group ended that was not lost, after so many steps of the run."""

    why: Literal["finished", "asked", "preempted"]
    step: int


@dataclass(frozen=True)
class Again:
    """The next group: why it is started, after which wait, and with which micro-batch."""

    why: str
    wait_seconds: float
    micro_batch_size: int


class Retries:
    """What a run has survived so far. Steps that were done since are proof that it gets on."""

    def __init__(self, max_failures: int, micro_batch_size: int) -> None:
        self._max_failures = max_failures
        self._micro = micro_batch_size
        self._losses = 0
        self._halved = False
        self._in_a_row = 0
        self._step = -1

    def after_end(self, ended: Ended) -> Again:
        """Decide after workers have saved and ended before the last step; no loss is counted."""
        self._note(ended.step)
        if ended.why == "preempted" and self._in_a_row > _MOST_PREEMPTIONS:
            raise TrainError(
                f"workers were preempted {self._in_a_row} times at step {ended.step}",
                "run the same command again once the machines are stable",
            )
        said = "its machine is taken" if ended.why == "preempted" else "it was asked to end"
        return Again(f"a worker ended after step {ended.step}: {said}", 0.0, self._micro)

    def after_failure(self, failure: Exception, step: int) -> Again:
        """Decide after a failure at a step; raises what ends the run, in words for its user."""
        cause = cause_of(failure)
        if is_preemption(cause):
            return self.after_end(Ended("preempted", step))
        if is_out_of_memory(cause) and not self._halved and self._micro > 1:
            self._halved = True
            before, self._micro = self._micro, self._micro // 2
            changed = f"train.micro_batch_size={self._micro} instead of {before}"
            return Again(f"out of memory ({first_line(cause)}): {changed}", 0.0, self._micro)
        self._losses += 1
        if not is_loss(cause) or self._losses > self._max_failures:
            raise explained(cause, self._losses) from None  # Ray's wrappers tell nothing more
        self._note(step)
        count = f"loss {self._losses} of at most {self._max_failures}"
        wait = min(_LONGEST_WAIT, 2.0 ** (self._in_a_row - 1))
        who = "the controller" if isinstance(failure, RayActorError) else "a worker"
        return Again(f"{who} was lost ({first_line(cause)}), {count}", wait, self._micro)

    def _note(self, step: int) -> None:
        self._in_a_row = 1 if step > self._step else self._in_a_row + 1
        self._step = max(step, self._step)
