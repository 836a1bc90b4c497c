"""Which faults hit a run, and at which of its steps: a function of the seed alone."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

GAP = 8  # steps from one fault to the next
AT_ONCE = 10  # faults that one run has to bear

KINDS = {
    "worker": "SIGKILL to one worker",
    "preempt": "SIGTERM to one worker",
    "hang": "SIGSTOP to one worker",
    "controller": "SIGKILL to Ray Train's controller",
    "driver": "SIGKILL to the command, same command again",
    "pause": "SIGTERM to the command, same command again",
    "bit": "a bit of the newest checkpoint flipped, a worker killed",
    "cut": "the newest checkpoint cut short, the command killed",
    "storage": "a file in the way of the next checkpoint, removed, same command again",
}


@dataclass(frozen=True)
class Fault:
    """What happens once the run has finished a step; `draw` chooses the victim."""

    kind: str
    step: int
    draw: int


def schedule(seed: int, count: int, kinds: Sequence[str]) -> list[list[Fault]]:
    """Return the faults of each run, in order of their steps. All kinds come before one returns."""
    draw = random.Random(seed)
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += draw.sample(kinds, len(kinds))
    runs = [drawn[first : min(count, first + AT_ONCE)] for first in range(0, count, AT_ONCE)]
    return [
        [
            Fault(kind, GAP * place + draw.randint(4, GAP), draw.getrandbits(32))
            for place, kind in enumerate(run)
        ]
        for run in runs
    ]


def steps_for(count: int) -> int:
    """Return how many steps a run needs to bear its part of `count` faults, and to end in peace."""
    return GAP * (min(count, AT_ONCE) + 1)
