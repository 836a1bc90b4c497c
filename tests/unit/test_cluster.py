"""Who gets what of a cluster, and what is said when it isn't enough: arithmetic, without Ray."""

from dataclasses import replace

import pytest

from ftray.cluster import Allotment, Node, allot, check_fit
from ftray.config.run import ScalingConfig
from ftray.errors import ClusterError, OccupiedError
from ftray.jobs import SERVING, Holding
from ftray.machines import emptied, stock

GIB = 2**30


def node(cpus: float, gpus: float = 0, gib: float = 16) -> Node:
    return Node("id", "10.0.0.1", cpus, gpus, gib * GIB)


def scaling(workers: int, **changes: float) -> ScalingConfig:
    return ScalingConfig.model_validate({"num_workers": workers, **changes})


@pytest.mark.parametrize(
    ("workers", "machines", "cpus"),
    [
        (2, [node(2)], 0.5),  # two workers must run on two cores
        (1, [node(2)], 1.0),
        (3, [node(4)], 1.0),
        (4, [node(4)], 0.75),
        (2, [node(16)], 7.0),  # whole ones
        (1, [node(2), node(2)], 2.0),  # a worker is on one machine
        (2, [node(8), node(2)], 4.0),
        (3, [node(4), node(1)], 1.0),
        (2, [node(1), node(1)], 0.5),
        (8, [node(64, 8)], 4.0),  # a training loop on a GPU needs no more
        (2, [node(0), node(9)], 4.0),  # a head node without CPUs
    ],
)
def test_auto_is_an_equal_share_that_every_machine_can_hold(
    workers: int, machines: list[Node], cpus: float
) -> None:
    found = allot(scaling(workers), machines)
    assert (found.workers, found.cpus) == (workers, cpus)
    check_fit(found, None, machines)


@pytest.mark.parametrize(
    ("machines", "workers"),
    [
        ([node(16, gpus=4)], 4),
        ([node(16, gpus=4), node(16, gpus=4)], 6),  # no more than the most
        ([node(5)], 4),  # on CPUs one each, and one is left for reads
        ([node(1)], 2),  # the least, each with a part of a CPU
    ],
)
def test_an_elastic_run_gets_as_many_workers_as_there_is_room_for(
    machines: list[Node], workers: int
) -> None:
    elastic = ScalingConfig.model_validate({"num_workers": {"min": 2, "max": 6}})
    assert allot(elastic, machines).workers == workers


def test_an_elastic_run_can_be_held_below_what_found_no_place() -> None:
    elastic = ScalingConfig.model_validate({"num_workers": {"max": 8}})
    assert allot(elastic, [node(16)], most=3).workers == 3


def test_auto_takes_a_gpu_each_where_there_are_some() -> None:
    assert allot(scaling(2), [node(8)]).gpus == 0
    assert allot(scaling(2), [node(8, gpus=4)]).gpus == 1
    assert allot(scaling(2, gpus_per_worker=0), [node(8, gpus=4)]).gpus == 0


def test_what_is_configured_is_taken_as_it_is() -> None:
    found = allot(scaling(2, cpus_per_worker=3, gpus_per_worker=0.5), [node(16, gpus=1)])
    assert (found.cpus, found.gpus) == (3, 0.5)
    assert str(found) == "2 workers of 3 CPUs and 0.5 GPUs"


def test_a_workers_threads_are_at_least_one() -> None:
    assert allot(scaling(64), [node(2)]).threads == 1


@pytest.mark.parametrize(
    ("wanted", "machines", "message", "hint"),
    [
        (
            Allotment(4, 1.0, 1.0, 1),
            [node(16, gpus=2)],
            "4 workers × 1 GPUs need 4 GPUs; the cluster has 2",
            "scaling.gpus_per_worker=0",
        ),
        (
            Allotment(2, 1.0, 0.0, 1),
            [node(2)],
            "2 workers × 1 CPUs + 1 for reading data need 3 CPUs; the cluster has 2",
            "scaling.cpus_per_worker=auto",
        ),
        (
            Allotment(3, 2.0, 0.0, 1),
            [node(1), node(1), node(5)],
            "each must fit on one machine; only 2 do (10.0.0.1: 1 CPUs, 0 GPUs, 16.0 GiB; ",
            "lower scaling.cpus_per_worker",
        ),
        (
            Allotment(2, 1.0, 1.0, 1),
            [node(8), node(0.5, gpus=2)],
            "each must fit on one machine; only 0 do",
            "scaling.gpus_per_worker",
        ),
    ],
)
def test_what_cannot_be_placed_is_refused_with_the_arithmetic(
    wanted: Allotment, machines: list[Node], message: str, hint: str
) -> None:
    with pytest.raises(ClusterError) as caught:
        check_fit(wanted, None, machines)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_memory_counts_on_each_machine_apart() -> None:
    wanted, machines = Allotment(2, 1.0, 0.0, 1), [node(4, gib=10), node(4, gib=10)]
    check_fit(wanted, 9 * GIB, machines)
    with pytest.raises(ClusterError, match=r"need about 11.0 GiB .* room for 0") as caught:
        check_fit(wanted, 11 * GIB, machines)
    assert "ftray check" in caught.value.hint
    with pytest.raises(ClusterError, match="room for 1"):
        check_fit(wanted, 9 * GIB, [machines[0], replace(machines[1], memory=GIB)])


@pytest.mark.parametrize(
    ("free", "used", "said"),
    [
        (8, [], "8"),
        (8, [("run a (job b)", 0)], "8"),
        (2, [("run a (job b)", 4), ("run a (job b)", 2)], "2 free of 8, 6 used by run a (job b)"),
        (
            0.5,
            [("serving", 1), ("job c", 2.5)],
            "0.5 free of 4, 3.5 used by job c (2.5), serving (1)",
        ),
        (0, [(f"job {n}", 1) for n in range(6)], "0 free of 6, 6 used by job 0 (1), job 1 (1), "),
    ],
)
def test_who_uses_a_cluster_is_said_in_words(
    free: float, used: list[tuple[str, float]], said: str
) -> None:
    assert stock(free, used).startswith(said)


def test_what_others_use_counts_as_not_there_and_is_named() -> None:
    held = (Holding("id", "run other (job x)", cpus=6, gpus=3),)
    busy = replace(node(2, gpus=1), held=held)
    with pytest.raises(
        ClusterError, match=r"need 4 GPUs; the cluster has 1 free of 4, 3 used by run other"
    ) as caught:
        check_fit(Allotment(4, 1, 1, 1), None, [busy])
    assert caught.value.hint.startswith("wait until more is free")
    assert isinstance(caught.value, OccupiedError)
    check_fit(Allotment(4, 1, 1, 1), None, emptied([busy]))
    assert allot(scaling(1), [replace(node(2), held=held)]).cpus == 1  # of what is left


def test_what_serving_keeps_will_not_become_free() -> None:
    held = (Holding("id", SERVING, cpus=2, gpus=0), Holding("id", "run other", cpus=1, gpus=0))
    busy = replace(node(1), held=held)
    with pytest.raises(ClusterError) as caught:
        check_fit(Allotment(2, 1, 0, 1), None, [busy])
    assert not isinstance(caught.value, OccupiedError)
    with pytest.raises(OccupiedError):
        check_fit(Allotment(1, 1, 0, 1), None, [busy])
