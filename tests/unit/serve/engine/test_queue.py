"""Whose turn it is."""

from collections import Counter

from ftray.serve.engine.job import Job
from ftray.serve.engine.queue import FairQueue, Shares
from ftray.serve.protocol import Generation


class Waits:
    """A choice that waits; the queue only looks at its job."""

    def __init__(self, job: Job) -> None:
        self.job = job


def queued(*names: str) -> FairQueue:
    """`owner/adapter/id`, in the order of their coming."""
    queue = FairQueue()
    for name in names:
        owner, adapter, _ = name.split("/")
        job = Job(Generation(name, (1,), adapter, 1, owner=owner))
        job.waiting.append(Waits(job))
        queue.add(job)
    return queue


def order(queue: FairQueue) -> list[str]:
    found = []
    while turn := queue.next(Shares(), rows=8):
        found.append(turn.job.generation.id)
        turn.job.waiting.clear()
        queue.advance(turn.job)
    return found


def test_owners_take_turns_and_each_owners_adapters_do():
    names = ("a/x/1", "a/x/2", "a/y/3", "a/x/4", "b/x/5", "b/x/6")
    assert order(queued(*names)) == ["a/x/1", "b/x/5", "a/y/3", "b/x/6", "a/x/2", "a/x/4"]


def test_while_others_wait_nobody_gets_more_than_a_share():
    queue = queued("a/x/1", "b/y/2")
    shares = Shares(Counter(a=4), Counter(x=4))

    turn = queue.next(shares, rows=8)

    assert (turn.job.generation.id, turn.rows) == ("b/y/2", 4)


def test_without_others_all_rows_are_for_one_owner():
    turn = queued("a/x/1").next(Shares(Counter(a=7), Counter(x=7)), rows=8)
    assert (turn.job.generation.id, turn.rows) == ("a/x/1", 1)


def test_who_lost_a_place_comes_first():
    queue = queued("a/x/1", "b/y/2")
    lost = Job(Generation("c/z/3", (1,), "z", 1, owner="c"))
    queue.put_back(Waits(lost))
    assert order(queue)[0] == "c/z/3"


def test_who_is_removed_is_nowhere():
    queue = queued("a/x/1", "a/x/2")
    queue.remove(next(iter(queue)))
    assert (len(queue), order(queue)) == (1, ["a/x/2"])
