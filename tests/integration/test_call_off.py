"""Workers that start beside the planning of a run end at once when planning fails."""

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray
from ray._private.state import state
from ray.util import placement_group_table

from ftray import cluster
from ftray.config.run import ScalingConfig
from ftray.errors import ConfigError
from ftray.runs import Run
from ftray.train.group import early_group
from ftray.train.size import Size


@pytest.mark.parametrize("title", ["", "TrainController", "RayTrainWorker"])
def test_what_was_started_is_gone_soon_after_planning_failed(
    title: str, tmp_path: Path, ray_cluster: None
) -> None:
    run, scaling = Run(str(tmp_path), "changed"), ScalingConfig(num_workers=2)
    before, size = held(), Size(scaling, cluster.allot(scaling, cluster.nodes()))
    with pytest.raises(ConfigError) as failure, early_group(run, size):
        plan(lambda: not title or titled(title))
    assert (
        time.monotonic() - float(failure.value.message) < 10
    )  # the workers' imports alone take longer
    wait_for(lambda: not titled("TrainController") and not titled("RayTrainWorker"))
    wait_for(lambda: is_within(held(), before))


def plan(has_started: Callable[[], object]) -> None:
    """Refuse as soon as the workers have come so far, and tell when."""
    wait_for(has_started)
    raise ConfigError(str(time.monotonic()))


Held = tuple[set[str], set[str], float]


def is_within(now: Held, before: Held) -> bool:
    """Whether nothing has come; of what another test had started some may have ended."""
    return now[0] <= before[0] and now[1] <= before[1] and now[2] >= before[2]


def held() -> Held:
    """The actors that live, the places that are taken, and the CPUs that are free."""
    actors = {name for name, actor in state.actor_table(None).items() if actor["State"] != "DEAD"}
    table = placement_group_table().items()
    places = {name for name, place in table if place["state"] != "REMOVED"}
    return actors, places, ray.available_resources().get("CPU", 0.0)


def titled(word: str) -> list[psutil.Process]:
    """The processes of this Ray that call themselves so."""
    below = psutil.Process().children(recursive=True)
    return [process for process in below if word in title_of(process)]


def title_of(process: psutil.Process) -> str:
    try:
        return "".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


def wait_for(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)
