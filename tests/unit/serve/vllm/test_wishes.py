"""A generation in vLLM's words."""

import json

import pytest
from llguidance import LLMatcher

from ftray.serve.protocol import Generation, RefusedError, Sampling
from ftray.serve.vllm.wishes import completion_body

WISH = {"id": "a", "prompt": (1, 2), "adapter": None, "max_tokens": 5}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def test_everything_is_said_so_that_no_default_of_the_models_applies():
    body = completion_body(Generation(**WISH), ends={7, 3})
    assert body["stop_token_ids"] == [3, 7]
    said = {name: body[name] for name in ("temperature", "top_p", "top_k", "min_p")}
    assert said == {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    assert body["repetition_penalty"] == 1.0
    assert "logprobs" not in body


def test_to_ignore_end_tokens_none_is_named():
    body = completion_body(Generation(**WISH, ignore_eos=True), ends=())
    assert (body["stop_token_ids"], body["ignore_eos"]) == ([], True)


def test_an_adapter_is_the_model_and_greedy_choices_are_drawn_once():
    wish = {**WISH, "adapter": "sha256-1", "n": 4}
    greedy = completion_body(Generation(**wish, sampling=Sampling(temperature=0)), ends=())
    warm = completion_body(Generation(**wish), ends=())
    assert (greedy["model"], greedy["n"], warm["n"]) == ("sha256-1", 1, 4)


@pytest.mark.parametrize(
    ("grammar", "field"),
    [
        (LLMatcher.grammar_from_json_schema(SCHEMA), "json"),
        (LLMatcher.grammar_from_lark("start: /a+/"), "grammar"),
    ],
)
def test_a_grammar_of_one_part_is_said_in_the_field_for_it(grammar, field):
    body = completion_body(Generation(**WISH, grammar=grammar), ends=())
    assert list(body["structured_outputs"]) == [field]


def test_a_schema_arrives_as_it_was():
    grammar = LLMatcher.grammar_from_json_schema(SCHEMA)
    body = completion_body(Generation(**WISH, grammar=grammar), ends=())
    assert json.loads(body["structured_outputs"]["json"]) == SCHEMA


@pytest.mark.parametrize(
    "grammars",
    [
        [{"json_schema": SCHEMA}, {"lark_grammar": "start: /a/"}],
        [{"lark_grammar": 'start: "::="'}],  # vLLM would take it for GBNF
    ],
)
def test_a_grammar_that_vllm_would_read_otherwise_is_refused(grammars):
    grammar = json.dumps({"grammars": grammars})
    with pytest.raises(RefusedError) as caught:
        completion_body(Generation(**WISH, grammar=grammar), ends=())
    assert caught.value.code == "bad_grammar"
