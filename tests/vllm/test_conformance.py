"""Both engines answer many at once as plain PEFT answers each alone, token for token."""

import asyncio
import json
from dataclasses import replace

import pytest
import torch
from llguidance import LLMatcher
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftray.model.export import load_with_peft
from ftray.serve.protocol import Sampling

pytestmark = pytest.mark.full
GREEDY = Sampling(temperature=0)


def test_every_row_tells_its_adapter_from_the_base_and_from_all_others(zoo):
    for mine in zoo.names:
        others = [zoo.answers[name, mine] for name in (None, *zoo.names) if name != mine]
        assert zoo.answers[mine, mine] not in others


def test_concurrent_mixed_rows_answer_as_each_does_alone(bench, zoo):
    async def scene():
        await bench.load(zoo)
        pairs = [(name, adapter) for name in zoo.names for adapter in ("same", None)]
        wishes = [bench.ask(zoo, "mixed", *pair) for pair in pairs]
        answers = await asyncio.gather(*map(bench.client.ask, wishes))
        for (mine, adapter), answer in zip(pairs, answers, strict=True):
            assert answer.ids == zoo.answers[mine if adapter else None, mine]
            assert answer.finish == "length"
        together = {id for step in bench.client.steps for id in step if id.startswith("mixed")}
        assert len(together) == len(pairs)

    bench.run(scene())


def test_with_rotated_names_every_row_changes(bench, zoo):
    rotated = [*zoo.names[1:], zoo.names[0]]

    async def scene():
        await bench.load(zoo)
        pairs = list(zip(zoo.names, rotated, strict=True))
        wishes = [bench.ask(zoo, "rotated", *pair) for pair in pairs]
        answers = await asyncio.gather(*map(bench.client.ask, wishes))
        for mine, answer in zip(zoo.names, answers, strict=True):
            assert answer.ids != zoo.answers[mine, mine]

    bench.run(scene())


def test_rows_that_join_and_leave_at_any_time_do_not_touch_one_another(bench, zoo):
    async def scene():
        await bench.load(zoo)
        tasks = []
        for number, name in enumerate(zoo.names):
            wish = bench.ask(zoo, "whole", name)
            short = replace(wish, id=f"short-{name}", max_tokens=1 + number % 5)
            gone = replace(wish, id=f"gone-{name}", max_tokens=400)
            await bench.client.submit(gone)
            tasks += [asyncio.create_task(bench.client.ask(each)) for each in (wish, short)]
            await bench.client.started(gone.id, 1 + number % 3)
            bench.engine.cancel(gone.id)
        answers = await asyncio.gather(*tasks)
        for number, name in enumerate(zoo.names):
            plain = zoo.answers[name, name]
            assert answers[2 * number].ids == plain
            assert answers[2 * number + 1].ids == plain[: 1 + number % 5]

    bench.run(scene())


def test_one_prompt_on_two_adapters_back_to_back_has_two_answers(bench, zoo):
    """Keys and values of a shared prefix belong to one adapter."""
    mine, other = zoo.names[6:8]

    async def scene():
        await bench.load(zoo)
        for number, adapter in enumerate((mine, other, None, mine)):
            answer = await bench.client.ask(bench.ask(zoo, f"prefix-{number}", mine, adapter))
            assert answer.ids[:4] == zoo.answers[adapter, mine][:4]
            if adapter != other:
                assert answer.ids == zoo.answers[adapter, mine]

    bench.run(scene())


def test_logprobs_are_those_of_a_full_forward_pass(bench, zoo):
    name = zoo.names[3]
    tokenizer = AutoTokenizer.from_pretrained(zoo.base)

    async def scene():
        await bench.load(zoo)
        asked = bench.ask(zoo, "logprobs", name)
        wish = replace(asked, logprobs=3, sampling=Sampling(temperature=0.7, seed=1))
        answer, other = await asyncio.gather(
            bench.client.ask(wish), bench.client.ask(bench.ask(zoo, "plain", zoo.names[4]))
        )
        base = AutoModelForCausalLM.from_pretrained(zoo.base, dtype=torch.float32)
        with torch.no_grad():
            ids = torch.tensor([[*wish.prompt, *answer.ids]])
            logits = load_with_peft(base, zoo.folders[name])(ids).logits
            values = logits[0, len(wish.prompt) - 1 : -1].log_softmax(-1)
        for token, row in zip(answer.tokens, values, strict=True):
            assert token.chosen.logprob == pytest.approx(float(row[token.id]), abs=1e-3)
            assert [t.id for t in token.top] == row.topk(3).indices.tolist()
            for top in token.top:
                assert top.logprob == pytest.approx(float(row[top.id]), abs=1e-3)
        assert other.tokens[0].chosen is None
        written = b"".join(token.chosen.text for token in answer.tokens)
        assert written.decode("utf-8", "replace") == tokenizer.decode(answer.ids)

    bench.run(scene())


def test_a_stop_string_ends_the_answer_and_is_not_shown(bench, zoo):
    name = zoo.names[1]

    async def scene():
        await bench.load(zoo)
        whole = (await bench.client.ask(bench.ask(zoo, "whole-text", name))).text
        stop = whole[9:15]  # several tokens
        asked = bench.ask(zoo, "cut", name)
        cut = await bench.client.ask(replace(asked, stop=("never", stop, "x" * 10_000)))
        assert (cut.text, cut.finish) == (whole[: whole.index(stop)], "stop")
        assert len(cut.ids) < len(zoo.answers[name, name])

    bench.run(scene())


def test_an_end_token_ends_the_answer_and_is_no_part_of_it(bench, zoo):
    name = zoo.names[0]
    end = Sampling(temperature=0, logit_bias={2: 100.0})  # <|im_end|>

    async def scene():
        asked = bench.ask(zoo, "end", name, None)
        short = await bench.client.ask(replace(asked, sampling=end, ignore_eos=False))
        assert (short.finish, short.ids, short.text) == ("stop", [], "")
        longer = await bench.client.ask(replace(asked, id="on", sampling=end, max_tokens=5))
        assert (longer.finish, longer.ids) == ("length", [2] * 5)

    bench.run(scene())


def test_a_seed_draws_the_same_alone_and_in_company(bench, zoo):
    name = zoo.names[3]
    warm = Sampling(temperature=1.2, top_p=0.95, top_k=200, seed=11)

    async def scene():
        await bench.load(zoo)
        wish = replace(bench.ask(zoo, "seed", name), sampling=warm, n=2)
        await bench.client.ask(replace(wish, id="seed-alone"))
        others = [
            replace(bench.ask(zoo, "company", other), sampling=replace(warm, seed=seed))
            for seed, other in enumerate(zoo.names)
        ]
        asked = [*others[:3], replace(wish, id="seed-in"), *others[3:]]
        await asyncio.gather(*map(bench.client.ask, asked))
        answers = bench.client.answers
        for index in (0, 1):
            assert answers["seed-alone", index].ids == answers["seed-in", index].ids
        assert answers["seed-in", 0].ids != answers["seed-in", 1].ids

    bench.run(scene())


def test_greedy_choices_are_all_the_same(bench, zoo):
    name = zoo.names[5]

    async def scene():
        await bench.load(zoo)
        await bench.client.ask(replace(bench.ask(zoo, "choices", name), id="choices", n=3))
        made = [bench.client.answers["choices", index] for index in range(3)]
        assert [answer.ids for answer in made] == [zoo.answers[name, name]] * 3
        assert len({answer.text for answer in made}) == 1

    bench.run(scene())


COLOR = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "green"]},
        "n": {"type": "integer", "minimum": 10, "maximum": 99},
    },
    "required": ["color", "n"],
    "additionalProperties": False,
}
TIGHT = {**COLOR, "x-guidance": {"whitespace_flexible": False}}  # the model loves blanks
LARK = f"%llguidance {{}}\nstart: call\ncall: %json {json.dumps(TIGHT)}"


@pytest.mark.parametrize(
    "grammar",
    [LLMatcher.grammar_from_json_schema(TIGHT), LLMatcher.grammar_from_lark(LARK)],
    ids=["schema", "lark"],
)
def test_a_grammar_holds_whatever_the_model_would_say(bench, zoo, grammar, request):
    name = zoo.names[0]

    async def scene():
        asked = bench.ask(zoo, request.node.name, name, None)
        wish = replace(
            asked,
            grammar=grammar,
            max_tokens=300,
            n=2,
            sampling=Sampling(temperature=1.0, top_k=20, seed=5),
            ignore_eos=False,
        )
        free = bench.client.ask(bench.ask(zoo, f"free-{request.node.name}", zoo.names[1], None))
        await asyncio.gather(bench.client.ask(wish), free)
        for index in (0, 1):
            answer = bench.client.answers[wish.id, index]
            assert answer.finish == "stop"
            assert json.loads(answer.text)["color"] in ("red", "green")

    bench.run(scene())
