"""How an engine treats those who ask: shares, limits, deadlines, cancels, failures, its end."""

import asyncio
import pickle
from dataclasses import replace

import pytest
import torch

from ftray.errors import ServeError
from ftray.serve.engine.limits import EngineLimits
from ftray.serve.protocol import Engine, RefusedError

LIMITS = EngineLimits(rows=2, waiting=3, threads=1)


def test_what_can_never_fit_is_refused_with_its_reason(zoo, running, go, refuses):
    wish = zoo.ask(zoo.names[0], None)

    async def scene():
        async with running(zoo.base, replace(LIMITS, kv_bytes=200_000)) as client:
            follows: Engine = client.engine
            with refuses("context_length") as caught:
                await follows.submit(replace(wish, max_tokens=600))
            assert "512 tokens of the model" in str(caught.value)
            with refuses("context_length"):
                await follows.submit(replace(wish, max_tokens=400))  # longer than the memory
            with refuses("context_length"):
                await follows.submit(replace(wish, prompt=(1, 259)))  # no such token
            with refuses("bad_adapter"):
                await follows.submit(replace(wish, adapter="nowhere"))
            assert (await client.ask(wish)).finish == "length"

    go(scene())


def test_the_queue_is_bounded(zoo, running, go, refuses):
    wish = zoo.ask(zoo.names[0], None)

    async def scene():
        async with running(zoo.base, LIMITS) as client:
            asked = [replace(wish, id=str(number)) for number in range(5)]
            for one in asked:
                await client.submit(one)
            with refuses("queue_full"):
                await client.engine.submit(wish)
            await asyncio.gather(*client.ends.values())
            assert (await client.ask(wish)).finish == "length"

    go(scene())


def test_a_greedy_owner_does_not_starve_the_others(zoo, running, go):
    async def scene():
        async with running(zoo.base, replace(LIMITS, waiting=50)) as client:
            wish = zoo.ask(zoo.names[0], None)
            for number in range(12):
                await client.submit(replace(wish, id=f"greedy-{number}", owner="greedy"))
            await client.started("greedy-0")
            await client.ask(replace(wish, id="modest", owner="modest"))
            done = [id for id, end in client.ends.items() if end.done()]
            assert len(done) <= 5
            await asyncio.gather(*client.ends.values())

    go(scene())


def test_a_deadline_ends_a_generation_with_an_error(zoo, running, go, refuses):
    wish = replace(zoo.ask(zoo.names[0], None), max_tokens=450)

    async def scene():
        async with running(zoo.base, LIMITS) as client:
            with refuses("deadline"):
                await client.ask(replace(wish, deadline_seconds=0.02))
            assert client.engine.stats().rows == 0

    go(scene())


def test_a_cancelled_generation_says_nothing_more_and_frees_its_row(zoo, running, go):
    names = zoo.names
    long = replace(zoo.ask(names[0], None, "long"), max_tokens=450)

    async def scene():
        async with running(zoo.base, replace(LIMITS, rows=1)) as client:
            await client.submit(long)
            await client.started("long")
            waiting = asyncio.create_task(client.ask(zoo.ask(names[1], None)))
            await asyncio.sleep(0)
            client.engine.cancel("long")
            said = len(client.answers["long", 0].tokens)
            assert (await waiting).finish == "length"
            assert len(client.answers["long", 0].tokens) == said < 450
            client.engine.cancel("long")  # no harm
            assert client.engine.stats().cancelled == 1

    go(scene())


def test_draining_ends_what_runs_and_refuses_what_is_new(zoo, running, go, refuses):
    names = zoo.names

    async def scene():
        async with running(zoo.base, LIMITS) as client:
            await client.submit(zoo.ask(names[0], None))
            await client.submit(replace(zoo.ask(names[1], None), max_tokens=450))
            draining = asyncio.create_task(client.engine.drain(0.2))
            await asyncio.sleep(0)
            with refuses("draining"):
                await client.engine.submit(zoo.ask(names[2], None))
            await draining
            assert client.answers[names[0], 0].finish == "length"
            with refuses("draining"):
                await client.ends[names[1]]

    go(scene())


def test_a_step_that_fails_ends_its_rows_and_the_engine_goes_on(zoo, running, go, refuses):
    """The model itself breaks once, as it would without memory."""
    wish = replace(zoo.ask(zoo.names[0], None), max_tokens=300)

    async def scene():
        async with running(zoo.base, LIMITS) as client:
            layer = client.engine._core.base.model.get_decoder().layers[0]
            await client.submit(wish)
            await client.started(wish.id)
            hook = layer.register_forward_pre_hook(_break)
            with refuses("internal") as caught:
                await client.ends[wish.id]
            hook.remove()
            assert "no memory left" in str(caught.value)
            assert not client.engine.is_dead
            again = replace(wish, id="again", max_tokens=20)
            assert (await client.ask(again)).ids == zoo.answers[None, wish.id]

    go(scene())


def test_an_engine_that_keeps_failing_says_that_it_is_dead(zoo, running, go, refuses):
    wish = zoo.ask(zoo.names[0], None)

    async def scene():
        async with running(zoo.base, LIMITS) as client:
            client.engine._core.base.model.get_decoder().layers[0].register_forward_pre_hook(_break)
            for number in range(3):
                with refuses("internal"):
                    await client.ask(replace(wish, id=str(number)))
            with refuses("internal") as caught:
                await client.engine.submit(wish)
            assert "died" in str(caught.value)
            assert client.engine.is_dead

    go(scene())


def test_logits_that_are_no_numbers_end_one_row_and_spoil_no_other(zoo, running, go, refuses):
    names = zoo.names

    async def scene():
        async with running(zoo.base, LIMITS) as client:
            core, once = client.engine._core, [True]

            def spoil(layer, args, output):
                if output.shape[:2] == (2, 1) and once:
                    once.clear()
                    output = output.clone()
                    output[1] = torch.nan
                return output

            core.base.model.get_decoder().layers[0].self_attn.k_proj.register_forward_hook(spoil)
            first = asyncio.create_task(client.ask(zoo.ask(names[3], None)))
            await client.started(names[3])
            with refuses("internal"):
                await client.ask(zoo.ask(names[4], None))
            assert (await client.ask(zoo.ask(names[2], None))).ids == zoo.answers[None, names[2]]
            assert (await first).ids == zoo.answers[None, names[3]]

    go(scene())


def test_an_engine_that_was_not_started_says_so(zoo, running, go):
    async def scene():
        async with running(zoo.base, LIMITS) as client:
            pass
        with pytest.raises(ServeError, match="does not run"):
            await client.engine.submit(zoo.ask(zoo.names[0], None))

    go(scene())


def test_a_refusal_survives_its_way_between_processes():
    error = pickle.loads(pickle.dumps(RefusedError("no", "hint", code="deadline")))
    assert (error.message, error.hint, error.code) == ("no", "hint", "deadline")


def _break(layer, args):
    raise RuntimeError("no memory left")
