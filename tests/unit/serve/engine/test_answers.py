"""What an answer is made of: text, ends, log-probabilities, constraints."""

import asyncio
import json
from dataclasses import replace

import pytest
import torch
from llguidance import LLMatcher
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftray.serve.engine.limits import EngineLimits
from ftray.serve.protocol import Sampling

LIMITS = EngineLimits(rows=4, threads=1)


def test_the_text_is_what_the_tokenizer_decodes(zoo, running, go):
    """The tiny model writes bytes at random: broken characters are shown at the end as well."""
    tokenizer = AutoTokenizer.from_pretrained(zoo.base)

    async def scene():
        async with running(zoo.base, LIMITS) as client:
            for name in zoo.names[:4]:
                answer = await client.ask(zoo.ask(name, None))
                assert answer.text == tokenizer.decode(answer.ids, skip_special_tokens=True)

    go(scene())


def test_an_answer_ends_at_its_length_or_at_an_end_token(zoo, running, go):
    name = zoo.names[0]

    async def scene():
        async with running(zoo.base, LIMITS) as client:
            long = await client.ask(zoo.ask(name, None))
            assert (long.finish, len(long.ids)) == ("length", 20)
            end = Sampling(temperature=0, logit_bias={2: 1000.0})  # <|im_end|>
            wish = replace(zoo.ask(name, None, "end"), sampling=end, ignore_eos=False)
            short = await client.ask(wish)
            assert (short.finish, short.ids, short.text) == ("stop", [], "")

    go(scene())


def test_a_stop_string_ends_the_answer_and_is_not_shown(zoo, running, go):
    name = zoo.names[1]

    async def scene():
        async with running(zoo.base, LIMITS) as client:
            whole = (await client.ask(zoo.ask(name, None))).text
            stop = whole[5:9]  # several tokens
            wish = replace(zoo.ask(name, None, "cut"), stop=("never", stop, "x" * 10_000))
            cut = await client.ask(wish)
            assert (cut.text, cut.finish) == (whole[: whole.index(stop)], "stop")

    go(scene())


def test_choices_share_one_prompt_and_draw_apart(zoo, running, go):
    name = zoo.names[5]

    async def scene():
        async with running(zoo.base, LIMITS) as client:
            await client.load(zoo)
            warm = Sampling(temperature=1.5, seed=3)
            await client.ask(replace(zoo.ask(name), n=4, sampling=warm))
            assert client.engine.stats().prompt_tokens == len(zoo.prompts[name])
            assert len({tuple(client.answers[name, i].ids) for i in range(4)}) == 4
            await client.ask(replace(zoo.ask(name, id="many"), n=9))
            assert {tuple(client.answers["many", i].ids) for i in range(9)} == {
                tuple(zoo.answers[name, name])
            }

    go(scene())


def test_logprobs_are_those_of_a_full_forward_pass(zoo, running, go):
    name = zoo.names[2]

    async def scene():
        async with running(zoo.base, LIMITS) as client:
            wish = replace(
                zoo.ask(name, None), logprobs=3, sampling=Sampling(temperature=0.7, seed=1)
            )
            answer, other = await asyncio.gather(
                client.ask(wish), client.ask(zoo.ask(zoo.names[4], None))
            )
        model = AutoModelForCausalLM.from_pretrained(zoo.base, dtype=torch.float32)
        with torch.no_grad():
            ids = torch.tensor([[*wish.prompt, *answer.ids]])
            values = model(ids).logits[0, len(wish.prompt) - 1 : -1].log_softmax(-1)
        for token, row in zip(answer.tokens, values, strict=True):
            assert token.chosen.logprob == pytest.approx(float(row[token.id]), abs=1e-3)
            assert [t.id for t in token.top] == row.topk(3).indices.tolist()
        assert other.tokens[0].chosen is None

    go(scene())


def test_logprobs_carry_the_exact_bytes_of_tokens(zoo, running, go):
    """One byte a token here, and many of them are only parts of characters."""
    name = zoo.names[6]
    tokenizer = AutoTokenizer.from_pretrained(zoo.base)

    async def scene():
        async with running(zoo.base, LIMITS) as client:
            answer = await client.ask(replace(zoo.ask(name, None), logprobs=0))
        written = b"".join(token.chosen.text for token in answer.tokens if token.id > 2)
        assert written.decode("utf-8", "replace") == tokenizer.decode(
            [id for id in answer.ids if id > 2]
        )

    go(scene())


def test_a_grammar_holds_whatever_the_model_would_say(zoo, running, go):
    schema = {
        "type": "object",
        "properties": {
            "color": {"enum": ["red", "green"]},
            "n": {"type": "integer", "maximum": 99},
        },
        "required": ["color", "n"],
        "additionalProperties": False,
    }
    grammar = LLMatcher.grammar_from_json_schema(schema)

    async def scene():
        async with running(zoo.base, LIMITS) as client:
            wish = replace(
                zoo.ask(zoo.names[0], None),
                grammar=grammar,
                max_tokens=200,
                n=3,
                sampling=Sampling(temperature=2.0, seed=5),
                ignore_eos=False,
            )
            free = client.ask(zoo.ask(zoo.names[1], None))
            await asyncio.gather(client.ask(wish), free)
        for index in range(3):
            answer = client.answers[wish.id, index]
            assert answer.finish == "stop"
            assert json.loads(answer.text)["color"] in ("red", "green")

    go(scene())


def test_a_grammar_that_makes_no_sense_is_refused_at_once(zoo, running, go, refuses):
    async def scene():
        async with running(zoo.base, LIMITS) as client:
            wish = replace(zoo.ask(zoo.names[0], None), grammar="{garbage")
            with refuses("bad_grammar"):
                await client.engine.submit(wish)
            assert (await client.ask(replace(wish, grammar=None))).finish == "length"

    go(scene())
