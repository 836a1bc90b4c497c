"""Which threads of an engine's process compute with several of torch's."""

import threading

import torch

from ftray.serve.engine.limits import EngineLimits


def test_the_engines_thread_takes_its_threads_and_leaves_the_others_theirs(zoo, running, go):
    seen = {}

    async def scene():
        async with running(zoo.base, EngineLimits(threads=3)) as client:
            await client.load(zoo)
            await client.ask(zoo.ask(zoo.names[0]))  # it has begun
            stepper = client.engine._core.stepper
            told = threading.Event()

            def look() -> None:
                seen["engine"] = torch.get_num_threads()
                told.set()

            stepper.tell(look)
            assert told.wait(10)

    before = torch.get_num_threads()
    go(scene())
    newcomer = threading.Thread(target=lambda: seen.update(newcomer=torch.get_num_threads()))
    newcomer.start()
    newcomer.join()
    assert seen == {"engine": 3, "newcomer": before}
    assert torch.get_num_threads() == before
