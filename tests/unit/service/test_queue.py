"""Who is next, and what an end means: as pure functions."""

import math
from dataclasses import replace

import pytest

from ftray.accounts.grant import Quota
from ftray.service.launcher import Room
from ftray.service.outcome import Data, End, Retrying, judge
from ftray.service.queue import Busy, Queue, Shares, Waiting

NONE = Quota(running_jobs=None, gpus=None)
FREE = Shares({})
DATA = Data("/data", "aa.jsonl", "bb.jsonl")


ANY = Room(math.inf, math.inf, math.inf, math.inf)


def waiting(id, project="a", **changes):
    return replace(Waiting(id, project, 0, 0.0, 1.0, 0.0, 0.0), **changes)


def busy(project, gpus=0.0, cpus=1.0):
    return Busy(project, cpus, gpus)


def next_job(waiting, busy, shares, started, now, room=ANY):
    return Queue(waiting, busy, shares, room).next(started, now)


def test_the_project_with_the_fewest_running_jobs_is_next_then_the_one_that_waited_longest():
    queue = [waiting("1"), waiting("2", "b"), waiting("3", "c")]
    one = [busy("a")]
    assert next_job(queue, one, FREE, {"b": 5.0, "c": 4.0}, 9.0) == "3"
    assert next_job(queue, one, FREE, {"c": 4.0}, 9.0) == "2"
    assert next_job(queue[:1], one, FREE, {}, 9.0) == "1"
    assert next_job([], one, FREE, {}, 9.0) is None


def test_within_a_project_priority_decides_then_age_and_who_has_failed_waits():
    queue = [waiting("old", created=1), waiting("new", created=2, priority=1)]
    assert next_job(queue, [], FREE, {}, 9.0) == "new"
    queue = [waiting("failed", not_before=10.0), waiting("other", created=5)]
    assert next_job(queue, [], FREE, {}, 9.0) == "other"
    assert next_job(queue[:1], [], FREE, {}, 9.0) is None


def test_a_share_of_gpus_holds_up_its_own_project_alone():
    shares = Shares({"a": Quota(gpus=4), "b": NONE})
    queue = [waiting("large", gpus=3), waiting("small", created=1), waiting("b", "b", gpus=9)]
    assert next_job(queue, [busy("a", 2)], shares, {}, 9.0) == "b"
    assert next_job(queue[:2], [busy("a", 2)], shares, {}, 9.0) is None
    assert next_job(queue[:2], [busy("a", 1)], shares, {}, 9.0) == "large"


def test_a_project_whose_storage_is_used_up_waits_and_holds_up_nobody():
    queue = [waiting("1"), waiting("2", "b", created=1)]
    assert next_job(queue, [], Shares({}, {"a"}), {}, 9.0) == "2"
    assert next_job(queue, [], Shares({}, {"a", "b"}), {}, 9.0) is None


def test_a_full_cluster_holds_up_what_does_not_fit_and_its_project_but_no_smaller_job_of_another():
    room = Room(cpus=6, gpus=2, most_cpus=8, most_gpus=4)
    queue = [waiting("large", cpus=4), waiting("small", created=1), waiting("b", "b", created=2)]
    assert next_job(queue, [], FREE, {}, 9.0, room) == "large"  # 4 + 1 to read
    assert next_job(queue, [busy("c", cpus=2)], FREE, {}, 9.0, room) == "b"
    assert next_job(queue, [busy("c", cpus=5)], FREE, {}, 9.0, room) is None
    assert Queue(queue, [busy("c", cpus=2)], FREE, room).crowded_out(9.0) == ["large"]
    queue = [waiting("gpus", gpus=3)]
    assert next_job(queue, [], FREE, {}, 9.0, room) is None
    assert next_job(queue, [], FREE, {}, 9.0, Room(6, 4, 8, 4)) == "gpus"


def test_what_the_cluster_never_holds_starts_and_is_told_why():
    room = Room(cpus=0, gpus=0, most_cpus=3, most_gpus=0)
    assert next_job([waiting("1", gpus=1)], [], FREE, {}, 9.0, room) == "1"
    assert next_job([waiting("1", cpus=3)], [], FREE, {}, 9.0, room) == "1"
    assert next_job([waiting("1", cpus=2)], [], FREE, {}, 9.0, room) is None


def test_no_room_beside_others_is_no_failure_however_often():
    end = End(4, "need 2 CPUs", False, "run", is_occupied=True)
    verdict = judge(end, Retrying(9, 9, 5.0), DATA)
    assert (verdict.status, verdict.counts, verdict.retry_after) == ("queued", False, 30.0)
    cancelled = End(4, "need 2 CPUs", False, "cancel", is_occupied=True)
    assert judge(cancelled, Retrying(0, 9, 5.0), DATA).status == "cancelled"


@pytest.mark.parametrize("code", [2, 3, 5, 6, 1, 0])
def test_a_mistake_fails_at_once(code):
    verdict = judge(End(code, "no", False, "run"), Retrying(0, 5, 1.0), DATA)
    assert verdict.status == "failed"


@pytest.mark.parametrize("code", [4, 8, 130, 137, -9, None])
def test_what_may_pass_is_tried_again_later_and_later_but_not_for_ever(code):
    end = End(code, "away", False, "run")
    delays = [judge(end, Retrying(n, 9, 1.0), DATA).retry_after for n in range(10)]
    assert delays == [1, 2, 4, 8, 16, 32, 64, 128, 256, 0]
    assert judge(end, Retrying(9, 9, 1.0), DATA).status == "failed"
    assert judge(End(code, "", False, "pause"), Retrying(0, 9, 1.0), DATA).status == "paused"
    assert judge(End(code, "", True, "cancel"), Retrying(0, 9, 1.0), DATA).status == "succeeded"


@pytest.mark.parametrize(
    ("said", "code", "message"),
    [
        ("/data/files/aa.jsonl line 7: no 'x'", "invalid_training_file", "Line 7: no 'x'"),
        ("/data/files/bb.jsonl line 7: no 'x'", "invalid_validation_file", "Line 7: no 'x'"),
        ("aa.jsonl: it is empty", "invalid_training_file", "it is empty"),
        ("3 rows are odd", "invalid_training_file", "3 rows are odd"),
    ],
)
def test_what_is_wrong_with_data_is_told_with_its_line_and_without_paths(said, code, message):
    error = judge(End(3, said, False, "run"), Retrying(0, 5, 1.0), DATA).error
    assert error is not None
    assert (error["code"], error["message"]) == (code, message)
