"""What an engine answers to many at once is what plain PEFT answers to each alone."""

import asyncio
from dataclasses import replace

from ftray.serve.engine.limits import EngineLimits
from ftray.serve.protocol import Sampling

LIMITS = EngineLimits(rows=6, prefill_tokens=48, threads=1)


def test_every_row_tells_its_adapter_from_the_base_and_from_all_others(zoo):
    for mine in zoo.prompts:
        others = [zoo.answers[name, mine] for name in (None, *zoo.prompts) if name != mine]
        assert zoo.answers[mine, mine] not in others


def test_concurrent_mixed_rows_answer_as_each_does_alone(zoo, running, go):
    async def scene():
        async with running(zoo.base, LIMITS) as client:
            await client.load(zoo)
            wishes = [zoo.ask(name) for name in zoo.prompts]
            wishes += [zoo.ask(name, None, f"base-{name}") for name in zoo.prompts]
            answers = await asyncio.gather(*map(client.ask, wishes))
        plain = [zoo.answers[name, name] for name in zoo.prompts]
        plain += [zoo.answers[None, name] for name in zoo.prompts]
        assert [answer.ids for answer in answers] == plain
        assert max(len(step) for step in client.steps) == LIMITS.rows
        assert client.info.notes == ()  # no fallback

    go(scene())


def test_with_rotated_names_every_row_changes(zoo, running, go):
    names = zoo.names
    rotated = [*names[1:], names[0]]

    async def scene():
        async with running(zoo.base, LIMITS) as client:
            await client.load(zoo)
            wishes = [zoo.ask(mine, other) for mine, other in zip(names, rotated, strict=True)]
            answers = await asyncio.gather(*map(client.ask, wishes))
        for mine, answer in zip(names, answers, strict=True):
            assert answer.ids != zoo.answers[mine, mine]

    go(scene())


def test_rows_that_join_and_leave_at_any_time_do_not_touch_one_another(zoo, running, go):
    names = zoo.names

    async def scene():
        async with running(zoo.base, LIMITS) as client:
            await client.load(zoo)
            tasks = []
            for number, name in enumerate([*names, *names]):
                wish = zoo.ask(name, id=f"{number}")
                short = replace(wish, id=f"short-{number}", max_tokens=1 + number % 5)
                gone = replace(wish, id=f"gone-{number}")
                await client.submit(gone)
                tasks += [asyncio.create_task(client.ask(w)) for w in (wish, short)]
                await client.started(gone.id, 1 + number % 3)
                client.engine.cancel(gone.id)
            await asyncio.gather(*tasks)
        for number, name in enumerate([*names, *names]):
            plain = zoo.answers[name, name]
            assert client.answers[f"{number}", 0].ids == plain
            assert client.answers[f"short-{number}", 0].ids == plain[: 1 + number % 5]

    go(scene())


def test_one_prompt_on_two_adapters_back_to_back_has_two_answers(zoo, running, go):
    mine, other = zoo.names[2:4]

    async def scene():
        async with running(zoo.base, LIMITS) as client:
            await client.load(zoo)
            for adapter in (mine, other, None, mine):
                answer = await client.ask(zoo.ask(mine, adapter, f"{adapter}{len(client.steps)}"))
                assert answer.ids[:4] == zoo.answers[adapter, mine][:4]
                if adapter in (mine, None):
                    assert answer.ids == zoo.answers[adapter, mine]

    go(scene())


def test_adapters_come_and_go_under_a_small_budget_without_a_wrong_answer(zoo, running, go):
    """Two or three fit at once: each load evicts another one that no row uses."""

    async def scene():
        size = 120_000
        limits = replace(LIMITS, adapter_bytes=size, lease_seconds=0.5)
        async with running(zoo.base, limits) as client:

            async def load_and_ask(name, number):
                await client.engine.load(zoo.source(name))
                answer = await client.ask(zoo.ask(name, id=f"{name}-{number}"))
                assert answer.ids == zoo.answers[name, name]

            for number in range(2):
                await asyncio.gather(*(load_and_ask(name, number) for name in zoo.prompts))
            stats = client.engine.stats()
        assert stats.evictions >= len(zoo.prompts)
        assert stats.thrashes >= 1
        assert stats.adapter_bytes <= size

    go(scene())


def test_a_long_prompt_in_chunks_answers_as_a_whole_one(zoo, running, go):
    name = zoo.names[-1]  # 68 tokens
    beside = zoo.names[0]

    async def scene():
        async with running(zoo.base, replace(LIMITS, prefill_tokens=7)) as client:
            await client.load(zoo)
            task = asyncio.create_task(client.ask(zoo.ask(beside)))
            await client.started(beside)
            answer = await client.ask(zoo.ask(name))
            assert answer.ids == zoo.answers[name, name]
            assert (await task).ids == zoo.answers[beside, beside]
            between = [name in step for step in client.steps].index(True)
            assert between > 5  # the running row went on while the prompt was computed

    go(scene())


def test_rows_that_lose_their_place_go_on_where_they_were(zoo, running, go):
    """Blocks for three rows of 128 tokens; when one needs more, two must start again."""

    async def scene():
        token = 2 * 2 * 2 * 16 * 4  # keys and values of 2 layers, 2 heads of 16, in fp32
        limits = replace(LIMITS, kv_bytes=384 * token)
        names = zoo.names[:3]
        async with running(zoo.base, LIMITS) as client:
            await client.load(zoo)
            wishes = [replace(zoo.ask(name), max_tokens=110) for name in names]
            free = [(await client.ask(wish)).ids for wish in wishes]
        async with running(zoo.base, limits) as client:
            await client.load(zoo)
            tight = [answer.ids for answer in await asyncio.gather(*map(client.ask, wishes))]
            assert client.engine.stats().prompt_tokens > sum(len(w.prompt) for w in wishes)
        assert tight == free

    go(scene())


def test_a_seed_draws_the_same_alone_and_in_company(zoo, running, go):
    names = zoo.names
    warm = Sampling(temperature=1.2, top_p=0.95, top_k=200, seed=11)

    async def scene():
        async with running(zoo.base, LIMITS) as client:
            await client.load(zoo)
            wish = replace(zoo.ask(names[3]), sampling=warm, n=2)
            await client.ask(replace(wish, id="alone"))
            others = [
                replace(zoo.ask(name), id=f"with-{name}", sampling=replace(warm, seed=seed))
                for seed, name in enumerate(names)
            ]
            await asyncio.gather(
                *map(client.ask, [*others[:3], replace(wish, id="in"), *others[3:]])
            )
        for index in (0, 1):
            assert client.answers["alone", index].ids == client.answers["in", index].ids
        assert client.answers["in", 0].ids != client.answers["in", 1].ids

    go(scene())
