"""Where trials train: decided by arithmetic, before anything starts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftray.cluster import Node
from ftray.config.base import override
from ftray.config.run import RunConfig, ScalingConfig
from ftray.config.search import HostsConfig
from ftray.config.space import DrawConfig
from ftray.errors import ClusterError, ConfigError
from ftray.model.shape import read_shape
from ftray.train.memory import Worker
from ftray.tune.places import (
    allot_hosts,
    allot_runs,
    capacity,
    check_targets,
    corners,
    worker_of,
)

GIB = 2**30
LAPTOP = [Node("a", "here", 2.0, 0.0, 8 * GIB)]
TWO_HOSTS = [Node(name, name, 8.0, 4.0, 64 * GIB) for name in "ab"]


def hosts(**changes: Any) -> HostsConfig:
    return HostsConfig.model_validate(changes)


@pytest.mark.parametrize(
    ("machines", "wanted", "trials", "expected"),
    [
        (LAPTOP, {}, 8, (1, 1.0, 0.0)),
        (LAPTOP, {"count": 2}, 8, (2, 0.5, 0.0)),
        (TWO_HOSTS, {}, 16, (8, 1.0, 1.0)),
        (TWO_HOSTS, {}, 3, (3, 4.0, 1.0)),
        (TWO_HOSTS, {"gpus": 0.5, "cpus": 0.25}, 99, (16, 0.25, 0.5)),
        (TWO_HOSTS, {"gpus": 0}, 16, (1, 8.0, 0.0)),
    ],
)
def test_there_is_a_host_for_each_gpu_and_without_one_a_single_host(
    machines: list[Node],
    wanted: dict[str, Any],
    trials: int,
    expected: tuple[int, float, float],
):
    found = allot_hosts(hosts(**wanted), machines, trials)
    assert (found.workers, found.cpus, found.gpus) == expected


@pytest.mark.parametrize(
    ("machines", "wanted", "message"),
    [
        (LAPTOP, {"gpus": 1}, "hosts of this search: .* need 1 GPUs; the cluster has 0"),
        (LAPTOP, {"cpus": 2}, r"\+ 1 for reading data need 3 CPUs; the cluster has 2"),
        (TWO_HOSTS, {"count": 9}, "9 workers × 1 GPUs need 9 GPUs; the cluster has 8"),
    ],
)
def test_hosts_that_never_fit_are_refused_with_the_arithmetic(
    machines: list[Node], wanted: dict[str, Any], message: str
):
    with pytest.raises(ClusterError, match=message) as caught:
        allot_hosts(hosts(**wanted), machines, 16)
    assert "hosts.count" in caught.value.hint


@pytest.mark.parametrize(
    ("machines", "scaling", "wanted", "expected"),
    [
        (LAPTOP, {}, {}, (1, 1, 1.0, 0.0)),
        (LAPTOP, {"cpus_per_worker": 0.5}, {}, (2, 2, 0.5, 0.0)),
        (LAPTOP, {"num_workers": 2}, {}, (1, 2, 0.5, 0.0)),
        (LAPTOP, {}, {"count": 2}, (2, 2, 0.5, 0.0)),
        (TWO_HOSTS, {}, {}, (6, 6, 2.0, 1.0)),
        (TWO_HOSTS, {"num_workers": 2}, {}, (4, 8, 1.0, 1.0)),
        (TWO_HOSTS, {"num_workers": 2}, {"count": 1}, (1, 2, 4.0, 1.0)),
        (TWO_HOSTS, {"num_workers": 4, "gpus_per_worker": 0.5}, {}, (4, 16, 0.93, 0.5)),
    ],
)
def test_so_many_ordinary_trials_train_at_once_as_the_cluster_holds(
    machines: list[Node],
    scaling: dict[str, Any],
    wanted: dict[str, Any],
    expected: tuple[int, int, float, float],
):
    at_once, found = allot_runs(
        hosts(**wanted), ScalingConfig.model_validate(scaling), machines, trials=6
    )
    assert (at_once, found.workers, found.cpus, found.gpus) == expected


def test_more_ordinary_trials_at_once_than_fit_are_refused():
    scaling = ScalingConfig(cpus_per_worker=1)
    with pytest.raises(ClusterError, match=r"2 trials at once: .* need 3 CPUs"):
        allot_runs(hosts(count=2), scaling, LAPTOP, 6)
    with pytest.raises(ClusterError, match=r"1 trials at once: .* need 3 CPUs"):
        allot_runs(hosts(), ScalingConfig(cpus_per_worker=2), LAPTOP, 6)


def test_hosts_on_one_machine_share_its_memory():
    two = allot_hosts(hosts(count=2), LAPTOP, 8)
    assert worker_of(two, LAPTOP).memory == 4 * GIB


@pytest.fixture
def run_of(tiny_folder: Path) -> Callable[..., RunConfig]:
    def run_of(**changes: Any) -> RunConfig:
        tree = {
            "name": "tickets",
            "model": {"name": str(tiny_folder)},
            "data": {"train": "a.jsonl", "eval": "b.jsonl", "max_length": 64},
            "train": {"max_steps": 20},
        }
        return override(RunConfig.model_validate(tree), changes)

    return run_of


def test_the_ends_of_a_space_are_tried_one_by_one_and_together(run_of: Callable[..., RunConfig]):
    space = {
        "adapter.rank": DrawConfig(choice=[4, 8, 64]),
        "train.warmup_steps": DrawConfig(int=[0, 40]),  # more than there are steps
        "adapter.rslora": DrawConfig(choice=[True], when={"adapter.rank": 64}),
    }
    found = {
        (end.adapter.rank, end.train.warmup_steps, end.adapter.rslora)
        for end in corners(run_of(), space)
    }
    assert found == {(4, 0, False), (8, 0, False), (64, 0, False), (64, 0, True)}


def test_a_host_has_as_many_slots_as_its_memory_holds(
    run_of: Callable[..., RunConfig], tiny_folder: Path
):
    ends = [run_of(**{"adapter.rank": rank}) for rank in (4, 64)]
    roomy = Worker("cpu", 1, 8 * GIB, "")
    assert capacity(run_of(), ends, 8, tiny_folder, roomy, hosts()).slots == 8
    assert capacity(run_of(), ends, 8, tiny_folder, roomy, hosts(slots=3)).slots == 3
    with pytest.raises(ClusterError, match="does not hold the base model and the largest trial"):
        capacity(run_of(), ends, 8, tiny_folder, Worker("cpu", 1, 10**6, ""), hosts())


def test_no_host_has_slots_for_the_share_of_another(
    run_of: Callable[..., RunConfig], tiny_folder: Path
):
    roomy = Worker("cpu", 1, 8 * GIB, "")
    for wanted in (hosts(), hosts(slots=8)):
        assert capacity(run_of(), [run_of()], 4, tiny_folder, roomy, wanted).slots == 4


def test_a_layer_that_the_model_does_not_have_is_named(
    run_of: Callable[..., RunConfig], tiny_folder: Path
):
    shape = read_shape(tiny_folder)
    check_targets([run_of(**{"adapter.target": ["q_proj"]})], shape)
    with pytest.raises(ConfigError, match=r"no linear layer of .* is called 'q_projj'") as caught:
        check_targets([run_of(**{"adapter.target": ["q_projj"]})], shape)
    assert caught.value.hint == "did you mean 'q_proj'?"
