"""Models that a dense block of keys does not suit are computed row by row, and say so."""

import asyncio

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from ftray.serve.engine.limits import EngineLimits
from ftray.serve.protocol import Generation, Sampling

SMALL = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
ROPE = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


def mistral() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=8))


def gemma() -> PreTrainedModel:
    kinds = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=8, layer_types=kinds)
    return Gemma3ForCausalLM(config)


def stretched() -> PreTrainedModel:
    return Qwen2ForCausalLM(
        Qwen2Config(**{**SMALL, "max_position_embeddings": 64}, rope_parameters=ROPE)
    )


def full() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**SMALL))


@pytest.mark.parametrize(
    ("make", "note"),
    [
        (mistral, "DynamicSlidingWindowLayer"),
        (gemma, "DynamicSlidingWindowLayer"),
        (stretched, "dynamic"),
        (full, None),
    ],
)
def test_other_caches_answer_as_plain_generate_does(make, note, tiny_folder, tmp_path, running, go):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = make().eval()
        prompts = [tuple(torch.randint(3, 259, (length,)).tolist()) for length in (4, 21, 37)]
    for file in tiny_folder.glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)

    async def scene():
        async with running(tmp_path, EngineLimits(rows=3, prefill_tokens=16, threads=1)) as client:
            wishes = [
                Generation(f"{i}", prompt, None, 12, Sampling(temperature=0), n=2, ignore_eos=True)
                for i, prompt in enumerate(prompts)
            ]
            answers = await asyncio.gather(*map(client.ask, wishes))
            assert [note in text for text in client.info.notes] == ([True] if note else [])
        for prompt, answer, wish in zip(prompts, answers, wishes, strict=True):
            made = plain.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)),
                max_new_tokens=12, do_sample=False, eos_token_id=None,
            )  # fmt: skip
            assert answer.ids == made[0, len(prompt) :].tolist()
            assert client.answers[wish.id, 1].ids == answer.ids

    go(scene())


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_a_rounded_base_serves_adapters(zoo, running, go, precision):
    name = zoo.names[0]

    async def scene():
        limits = EngineLimits(rows=2, threads=1)
        async with running(zoo.base, limits, precision=precision) as client:
            await client.load(zoo)
            mine, other = await asyncio.gather(
                client.ask(zoo.ask(name)), client.ask(zoo.ask(name, None, "base"))
            )
            assert mine.ids != other.ids
            assert client.info.dtype == f"{precision}, computed in float32"

    go(scene())


@pytest.mark.parametrize("how", [{"dtype": "bfloat16"}, {"precision": "int8"}])
def test_what_rounds_says_that_answers_may_vary_and_keeps_its_batches(zoo, running, go, how):
    async def scene():
        async with running(zoo.base, EngineLimits(threads=1), **how) as client:
            await client.load(zoo)
            answers = await asyncio.gather(*(client.ask(zoo.ask(name)) for name in zoo.prompts))
            assert {len(answer.ids) for answer in answers} == {20}
            assert not client.info.is_deterministic
            (note,) = client.info.notes  # none that says that rows are computed one by one
            assert f"{next(iter(how.values()))} is not batch-invariant" in note

    go(scene())
