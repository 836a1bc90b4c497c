"""How both engines refuse, end, and let adapters come and go."""

import asyncio
import json
import shutil
from dataclasses import replace

import pytest

from ftray.serve.protocol import AdapterSource

pytestmark = pytest.mark.full


def test_what_can_never_run_is_refused_with_its_reason(bench, zoo, refuses):
    async def scene():
        wish = bench.ask(zoo, "refused", zoo.names[0], None)
        for change, code in [
            ({"max_tokens": 2000}, "context_length"),
            ({"prompt": ()}, "context_length"),
            ({"prompt": (1, 10**6)}, "context_length"),
            ({"adapter": "nowhere"}, "bad_adapter"),
            ({"grammar": "{garbage"}, "bad_grammar"),
        ]:
            with refuses(code):
                await bench.engine.submit(replace(wish, **change))
        assert (await bench.client.ask(wish)).finish == "length"

    bench.run(scene())


@pytest.mark.parametrize("feature", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_that_is_not_plain_lora_is_refused(bench, zoo, tmp_path, refuses, feature):
    folder = tmp_path / "odd"
    shutil.copytree(zoo.folders[zoo.names[0]], folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | feature))

    async def scene():
        with refuses("bad_adapter") as caught:
            source = AdapterSource(f"odd-{next(iter(feature))}", str(folder), "support-bot@3")
            await bench.engine.load(source)
        assert "support-bot@3" in str(caught.value)
        assert next(iter(feature)) in str(caught.value)

    bench.run(scene())


def test_a_deadline_ends_a_generation_with_an_error(bench, zoo, refuses):
    async def scene():
        wish = replace(bench.ask(zoo, "late", zoo.names[0], None), max_tokens=900)
        with refuses("deadline"):
            await bench.client.ask(replace(wish, deadline_seconds=0.1))
        assert bench.engine.stats().rows == 0

    bench.run(scene())


def test_a_cancelled_generation_says_nothing_more_and_frees_its_row(bench, zoo):
    async def scene():
        wish = replace(bench.ask(zoo, "cancelled", zoo.names[0], None), max_tokens=900)
        before = bench.engine.stats().cancelled
        await bench.client.submit(wish)
        await bench.client.started(wish.id, 3)
        bench.engine.cancel(wish.id)
        said = len(bench.client.answers[wish.id, 0].tokens)
        after = bench.ask(zoo, "afterwards", zoo.names[1], None)
        assert (await bench.client.ask(after)).finish == "length"
        assert bench.engine.stats().rows == 0
        assert len(bench.client.answers[wish.id, 0].tokens) == said < 900
        bench.engine.cancel(wish.id)  # no harm
        assert bench.engine.stats().cancelled == before + 1

    bench.run(scene())


def test_adapters_come_and_go_without_a_wrong_answer(bench, zoo):
    """Twice as many digests as adapters: vLLM has room for ten of them here."""

    async def scene():
        async def load_and_ask(name, copy):
            digest = f"{name}-copy-{copy}"
            source = AdapterSource(digest, str(zoo.folders[name]), digest)
            await bench.engine.load(source)
            wish = replace(bench.ask(zoo, digest, name), adapter=digest)
            assert (await bench.client.ask(wish)).ids == zoo.answers[name, name]

        for copy in range(2):
            await asyncio.gather(*(load_and_ask(name, copy) for name in zoo.names))
        stats = bench.engine.stats()
        assert stats.adapter_bytes <= stats.adapter_budget
        if bench.kind == "vllm":
            assert stats.adapters <= 10
            assert stats.evictions >= 6

    bench.run(scene())
