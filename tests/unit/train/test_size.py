"""How many workers the next group gets; `fit` is given machines, so no cluster is needed."""

from ftray.cluster import Allotment, Node, allot
from ftray.config.run import ScalingConfig
from ftray.train.size import Size


def machines(count: int) -> list[Node]:
    return [Node(str(n), f"10.0.0.{n}", cpus=8, gpus=1, memory=2**34) for n in range(count)]


def size(workers: object, count: int) -> Size:
    tree = {"num_workers": workers, "placement_timeout_seconds": 120}
    scaling = ScalingConfig.model_validate(tree)
    return Size(scaling, allot(scaling, machines(count)))


def test_an_elastic_run_follows_its_machines_within_its_range() -> None:
    elastic = size({"min": 2, "max": 4}, count=3)
    found = []
    for count in (3, 2, 1, 9):
        elastic.fit(machines(count))
        found.append(elastic.now.workers)
    assert found == [3, 2, 2, 4]


def test_a_fixed_number_of_workers_never_changes() -> None:
    fixed = size(2, count=2)
    before: Allotment = fixed.now
    fixed.fit(machines(9))
    assert fixed.now == before
    assert not fixed.shrink()


def test_only_who_could_do_with_fewer_workers_gives_up_a_place_soon() -> None:
    assert size(4, count=4).timeout_seconds == 120
    assert size({"max": 4}, count=4).timeout_seconds == 15
    assert size({"max": 4}, count=1).timeout_seconds == 120


def test_a_group_is_not_disturbed_for_more_workers_just_after_its_start() -> None:
    assert not size({"max": 4}, count=1).could_grow(machines(4))
