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
    "node": "SIGKILL to the raylet of one of three nodes",
    "drain": "a notice that a node will be taken in 20 s, then SIGKILL to its raylet",
}
OF_NODES = ("node", "drain")  # these need a cluster of several nodes


@dataclass(frozen=True)
class Fault:
    """What happens once the run has finished a step; `draw` chooses the victim."""

    kind: str
    step: int
    draw: int


@dataclass(frozen=True)
class Ordeal:
    """The faults of one run, in order of their steps; on several nodes, or on one."""

    faults: list[Fault]
    on_nodes: bool


def schedule(seed: int, count: int, kinds: Sequence[str]) -> list[Ordeal]:
    """Return what each run has to bear. All kinds come before one returns."""
    draw = random.Random(seed)
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += draw.sample(kinds, len(kinds))
    here = [kind for kind in drawn[:count] if kind not in OF_NODES]
    there = [kind for kind in drawn[:count] if kind in OF_NODES]
    return [
        Ordeal(_faults(some[first : first + AT_ONCE], draw), on_nodes=some is there)
        for some in (here, there)
        for first in range(0, len(some), AT_ONCE)
    ]


def steps_for(count: int) -> int:
    """Return how many steps a run needs to bear its part of `count` faults, and to end in peace."""
    return GAP * (min(count, AT_ONCE) + 1)


def _faults(kinds: Sequence[str], draw: random.Random) -> list[Fault]:
    return [
        Fault(kind, GAP * place + draw.randint(4, GAP), draw.getrandbits(32))
        for place, kind in enumerate(kinds)
    ]
