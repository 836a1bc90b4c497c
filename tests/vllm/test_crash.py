"""A vLLM server that dies is replaced, and leaves nothing behind."""

import asyncio
import os
import signal
import time
from contextlib import contextmanager
from dataclasses import replace

import psutil
import pytest

from ftray.serve.protocol import RefusedError

pytestmark = pytest.mark.full


@pytest.mark.parametrize("killed", ["server", "its engine"])
def test_a_killed_server_loses_what_runs_and_is_replaced(bench, zoo, refuses, killed):
    if bench.kind != "vllm":
        pytest.skip("it has no server")
    name = zoo.names[2]

    async def scene():
        await bench.engine.load(replace(zoo.source(name), pinned=True))
        wish = replace(bench.ask(zoo, f"crash of {killed}", name), max_tokens=900)
        await bench.client.submit(wish)
        await bench.client.started(wish.id, 3)
        server = processes()
        engine = [one for one in server if "EngineCore" in "".join(one.cmdline())]
        os.kill((server if killed == "server" else engine)[0].pid, signal.SIGKILL)
        with refuses("lost"):
            await bench.client.ends[wish.id]
        with refuses("lost"):  # also while the server has no engine and has not ended yet
            await bench.engine.load(zoo.source(name))
            await bench.client.ask(bench.ask(zoo, f"at once after {killed}", name))
        await until_it_is_back(bench, zoo)
        assert len(server) > 1  # its workers go as well
        assert not any(process.is_running() for process in server)
        again = await bench.client.ask(bench.ask(zoo, f"again after {killed}", name))
        assert again.ids == zoo.answers[name, name]  # a pinned adapter needs no second load

    bench.run(scene())


async def until_it_is_back(bench, zoo):
    """Load another adapter: it may still be there, is refused for a while, and then is loaded."""
    loads = bench.engine.stats().loads
    end = time.monotonic() + 200
    while bench.engine.stats().loads < loads + 2:  # with the pinned one
        assert time.monotonic() < end
        assert not bench.engine.is_dead
        with suppress_lost():
            await bench.engine.load(zoo.source(zoo.names[0]))
        await asyncio.sleep(0.5)


@contextmanager
def suppress_lost():
    try:
        yield
    except RefusedError as error:
        if error.code != "lost":
            raise


def processes():
    """The server first, then what it has started."""
    [keeper] = [
        child
        for child in psutil.Process().children()
        if any("keeper" in a for a in child.cmdline())
    ]
    return keeper.children(recursive=True)
