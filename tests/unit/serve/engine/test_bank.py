"""Which adapters are let in, kept, and let go."""

import asyncio
import json
import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from ftray.serve.engine.limits import EngineLimits
from ftray.serve.protocol import AdapterSource

LIMITS = EngineLimits(rows=2, threads=1, lease_seconds=0.05)
WEIGHTS = "adapter_model.safetensors"


def with_config(**changes):
    def change(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def with_tensors(change):
    def changed(folder):
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return changed


def rename_one(tensors):
    key = next(key for key in tensors if "q_proj.lora_A" in key)
    tensors[key.replace("q_proj", "query")] = tensors.pop(key)


def drop_a_layer(tensors):
    for key in [key for key in tensors if "layers.1.mlp.up_proj" in key]:
        del tensors[key]


def spoil_one(tensors):
    tensors[next(iter(tensors))].view(-1)[0] = float("nan")


def narrow_all(tensors):
    for key in [key for key in tensors if "lora_A" in key]:
        tensors[key] = tensors[key][:, 1:].contiguous()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_config(use_dora=True), "use_dora"),
        (with_config(modules_to_save=["lm_head"]), "modules_to_save"),
        (with_config(bias="all"), "bias"),
        (with_config(alora_invocation_tokens=[1, 2]), "alora_invocation_tokens"),
        (with_config(init_lora_weights="pissa"), "init_lora_weights"),
        (with_config(peft_type="IA3"), "IA3"),
        (with_config(r=4), "ranks 8 and 8"),
        (with_tensors(rename_one), "query"),
        (with_tensors(drop_a_layer), "lacks the weights"),
        (with_tensors(spoil_one), "no numbers"),
        (with_tensors(narrow_all), "made for another model"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"junk"), "no usable"),
        (lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"), "no usable"),
    ],
)
def test_an_adapter_that_cannot_be_served_is_refused_with_its_reason(
    zoo, tmp_path, change, reason, bank
):
    folder = tmp_path / "adapter"
    shutil.copytree(zoo.folders[zoo.names[0]], folder)
    change(folder)

    message = bank.refusal(AdapterSource("broken", str(folder), "support-bot@3"))

    assert reason in message
    assert "support-bot@3" in message


def test_many_who_want_one_adapter_read_it_once(zoo, running, go):
    name = zoo.names[0]

    async def scene():
        async with running(zoo.base, LIMITS) as client:
            await asyncio.gather(*(client.engine.load(zoo.source(name)) for _ in range(20)))
            assert client.engine.stats().loads == 1

    go(scene())


def test_a_failure_is_remembered_for_a_while(zoo, running, go, refuses, tmp_path):
    folder = tmp_path / "adapter"

    async def scene():
        async with running(zoo.base, replace(LIMITS, failure_seconds=0.2)) as client:
            source = AdapterSource("late", str(folder))
            with refuses("bad_adapter"):
                await client.engine.load(source)
            shutil.copytree(zoo.folders[zoo.names[0]], folder)
            with refuses("bad_adapter"):
                await client.engine.load(source)
            await asyncio.sleep(0.2)
            await client.engine.load(source)
            assert client.engine.stats().adapters == 1

    go(scene())


def test_an_adapter_larger_than_the_budget_is_refused(zoo, running, go, refuses):
    async def scene():
        async with running(zoo.base, replace(LIMITS, adapter_bytes=1000)) as client:
            with refuses("bad_adapter") as caught:
                await client.engine.load(zoo.source(zoo.names[0]))
            assert "1,000" in str(caught.value)

    go(scene())


def test_a_budget_full_of_pinned_adapters_refuses_others(zoo, running, go, refuses):
    async def scene():
        async with running(zoo.base, replace(LIMITS, adapter_bytes=100_000)) as client:
            await client.engine.load(zoo.source(zoo.names[0], pinned=True))
            with refuses("bad_adapter") as caught:
                await client.engine.load(zoo.source(zoo.names[3]))
            assert "pinned" in str(caught.value)

    go(scene())


def test_a_load_waits_while_all_are_in_use_and_pinned_ones_stay(zoo, running, go):
    """Of three equal adapters two fit; the first is pinned, the second answers."""
    first, second, third = zoo.names[0], zoo.names[3], zoo.names[7]

    async def scene():
        async with running(zoo.base, replace(LIMITS, adapter_bytes=140_000)) as client:
            await client.engine.load(zoo.source(first, pinned=True))
            await client.engine.load(zoo.source(second))
            await client.submit(replace(zoo.ask(second), max_tokens=300))
            loading = asyncio.create_task(client.engine.load(zoo.source(third)))
            await client.started(second, 100)
            assert not loading.done()
            await loading
            assert client.ends[second].done()
            assert (await client.ask(zoo.ask(first))).ids == zoo.answers[first, first]
            assert client.engine.stats().evictions == 1

    go(scene())
