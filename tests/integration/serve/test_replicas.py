"""More engines for more requests, and fewer again, over one registry."""

import time

import pytest
from load import Load
from server import Server

from tests.integration.serve.conftest import Served

pytestmark = pytest.mark.full
SECONDS = 300.0


@pytest.fixture
def growing(zoo, tmp_path):
    """A server of one or two engines, which looks often at how many it needs."""
    settings = [
        f"storage={zoo.root}",
        f"model.name={zoo.base.folder}",
        f"database=sqlite:///{tmp_path}/accounts.db",
        "engine.adapter_gib=0.2",
        "engine.kv_gib=0.2",
        "engine.threads=1",
        "replicas.max=2",
        "replicas.target_requests=4",
        "replicas.upscale_seconds=1",
        "replicas.downscale_seconds=5",
        "replicas.drain_seconds=60",
    ]
    server = Server(tmp_path / "server", settings)
    try:
        server.wait_until_ready()
        yield Served(server, zoo, "any", "", [])
        assert server.interrupt() == 0, server.last_words()
    finally:
        left = server.left_over()
    assert left == []


def budget(served):
    """The memory for keys and values of all engines that answer: as much on each."""
    return served.metric("ftray_engine_kv_budget")


def wait_for(wanted, served):
    end = time.monotonic() + SECONDS
    while budget(served) != wanted:
        assert time.monotonic() < end, served.server.last_words()
        time.sleep(0.5)


def test_an_engine_comes_with_the_load_and_goes_after_it_and_no_answer_is_wrong(growing):
    of_one = budget(growing)
    with Load(growing, clients=8) as load:
        wait_for(2 * of_one, growing)
        before = len(load.outcomes)
        while len(load.outcomes) < before + 24:  # both get some of them
            time.sleep(0.1)
    with Load(growing, clients=1) as few:  # goes on while one of them is stopped
        wait_for(of_one, growing)
    assert {outcome for _, outcome in load.outcomes + few.outcomes} == {"right"}
