"""OpenAI's own client against the real command: what it may ask, and how it is refused."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest


def test_models_are_listed_and_shown(served):
    ids = {model.id for model in served.client.models.list()}
    assert {served.model("base"), "ant", "jay"} <= ids
    assert served.client.models.retrieve("bee@1").id == "bee@1"
    assert served.client.models.retrieve(served.model("base")).object == "model"


def test_a_stream_says_what_the_whole_answer_says_and_what_it_used(served):
    whole = served.ask("cat")
    *chunks, last = served.ask("cat", stream=True, stream_options={"include_usage": True})
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert (last.choices, last.usage) == ([], whole.usage)
    assert whole.usage.completion_tokens > 0


def test_completions_take_several_prompts_and_choices(served):
    create = served.client.completions.create
    asked = {"model": "dog", "prompt": ["one two", "drei"], "n": 2, "max_tokens": 8, "seed": 3}
    answer = create(**asked)
    texts = [choice.text for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert texts == [choice.text for choice in create(**asked).choices]
    assert texts[0] != texts[1]
    assert answer.usage.completion_tokens <= 32


def test_a_stop_string_ends_an_answer_and_is_not_in_it(served):
    text = served.ask("elk").choices[0].message.content
    stop = text[len(text) // 2 :][:3]
    answer = served.ask("elk", stop=[stop, "never said"]).choices[0]
    assert answer.message.content == text.partition(stop)[0]
    assert answer.finish_reason == "stop"


def test_a_seed_draws_the_same_alone_and_in_company(served):
    options = {"temperature": 1.0, "top_p": 0.95, "seed": 11, "n": 2}

    def drawn(name, **changes):
        answer = served.ask(name, **{**options, **changes})
        return [choice.message.content for choice in answer.choices]

    alone = drawn("fox")
    assert alone[0] != alone[1]
    with ThreadPoolExecutor(6) as threads:
        company = [threads.submit(drawn, name, seed=5) for name in ("ant", "bee", "cat", "fox")]
        beside = [threads.submit(drawn, "fox") for _ in range(2)]
        assert [one.result() for one in beside] == [alone, alone]
        assert all(one.result() != alone for one in company)


def test_logprobs_tell_exact_bytes_and_the_likeliest_others(served):
    choice = served.ask("gnu", logprobs=True, top_logprobs=3).choices[0]
    tokens = choice.logprobs.content
    spoken = b"".join(bytes(t.bytes) for t in tokens if not t.token.startswith("<|"))
    assert spoken.decode(errors="replace") == choice.message.content
    for token in tokens:
        others = [other.logprob for other in token.top_logprobs]
        assert others == sorted(others, reverse=True)
        assert token.logprob == pytest.approx(others[0])  # greedy


def test_an_answer_follows_a_schema(served):
    properties = {"colour": {"enum": ["red", "blue"]}, "sure": {"type": "boolean"}}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "colour", "schema": schema}}
    # a schema allows any blanks, and so weak a model would never stop writing them
    tokenizer = served.zoo.base.tokenizer
    blank = [id for id in range(len(tokenizer)) if tokenizer.decode([id]).isspace()]
    bias = {str(id): -100 for id in blank}
    choice = served.ask("hen", response_format=form, max_tokens=60, logit_bias=bias).choices[0]
    answer = json.loads(choice.message.content)
    assert answer["colour"] in ("red", "blue")
    assert isinstance(answer["sure"], bool)


def test_what_cannot_be_is_refused_by_name(served):
    with pytest.raises(openai.NotFoundError) as caught:
        served.ask("no-such-adapter")
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    with pytest.raises(openai.BadRequestError) as caught:
        served.ask("ant", temperature=3)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as caught:
        served.ask("ant", "word " * 9000)
    assert caught.value.code == "context_length_exceeded"
    missing = served.server.get("/v1/nothing", served.key)
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "invalid_request_error")


def test_a_key_is_needed_from_the_first_one_on_and_has_limits(served):
    assert served.before == "chat.completion"  # nobody had a key
    with pytest.raises(openai.AuthenticationError) as caught:
        served.server.client("sk-wrong").models.list()
    assert caught.value.code == "invalid_api_key"
    assert served.server.get("/v1/models").status_code == 401
    slow = served.server.client(served.new_key("--rpm", "1"))
    asked = {"model": "ant", "prompt": "Hi", "max_tokens": 1}
    slow.completions.create(**asked)
    with pytest.raises(openai.RateLimitError) as limited:
        slow.completions.create(**asked)
    assert limited.value.code == "rate_limit_exceeded"
    assert int(limited.value.response.headers["retry-after"]) > 0


def test_a_request_leaves_one_line_in_the_access_log_without_its_text(served):
    raw = served.client.chat.completions.with_raw_response.create(
        model="bee", messages=[{"role": "user", "content": "A word for nobody else"}], max_tokens=4
    )
    log = Path(served.zoo.root).parent / "access.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    [line] = [line for line in lines if line["request"] == raw.headers["x-request-id"]]
    assert (line["path"], line["status"]) == ("/v1/chat/completions", 200)
    assert (line["version"], line["answer_tokens"]) == ("bee@1", 4)
    assert "nobody else" not in log.read_text()


def test_a_request_is_followed_from_http_into_the_engine_by_spans(served):
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    answer = served.ask("ant", "A word that nobody tells", extra_headers=headers)
    end = time.monotonic() + 20  # they are sent every 5 s
    while len(spans := [s for s in served.spans if s.trace_id.hex() == trace]) < 2:
        assert time.monotonic() < end, spans
        time.sleep(0.1)
    inner, outer = sorted(spans, key=lambda span: span.start_time_unix_nano, reverse=True)
    assert (outer.name, inner.name) == ("POST /v1/chat/completions", "generate")
    assert inner.parent_span_id == outer.span_id
    assert [event.name for event in inner.events] == ["queued", "first token"]
    [tokens] = [a.value.int_value for a in inner.attributes if a.key.endswith("output_tokens")]
    assert tokens == answer.usage.completion_tokens
    assert not any(b"nobody tells" in span.SerializeToString() for span in spans)
