import json

import openai
import pydantic
import pytest

from ftray import registry

HELLO = [{"role": "user", "content": "Grüße, 世界 🙂!"}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Echo."}, {"role": "user", "content": text}]


def test_a_chat_is_answered_as_the_client_expects_it(client):
    answer = client.chat.completions.create(model="org/tiny-base", messages=HELLO)
    [choice] = answer.choices
    assert (choice.index, choice.finish_reason) == (0, "stop")
    assert (choice.message.role, choice.message.content) == ("assistant", "Grüße, 世界 🙂!")
    assert (choice.message.refusal, choice.message.tool_calls, choice.logprobs) == (None,) * 3
    assert (answer.object, answer.model) == ("chat.completion", "org/tiny-base")
    assert answer.id.startswith("chatcmpl-")
    assert answer.system_fingerprint.startswith("fp_")
    usage = answer.usage
    assert usage.completion_tokens == len("Grüße, 世界 🙂!".encode())
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream_is_the_same_answer_in_parts(client):
    stream = client.chat.completions.create(model="org/tiny-base", messages=HELLO, stream=True)
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Grüße, 世界 🙂!"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].choices[0].delta.content is None
    assert all(c.choices[0].finish_reason is None for c in chunks[:-1])
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert len({c.id for c in chunks}) == 1
    assert all(c.usage is None for c in chunks)


def test_usage_comes_last_in_a_stream_when_asked_for(client):
    chunks = list(
        client.chat.completions.create(
            model="org/tiny-base",
            messages=said("four"),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 4)
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_choices_are_told_apart_in_bodies_and_in_streams(client):
    answer = client.chat.completions.create(model="org/tiny-base", messages=said("abc"), n=3)
    assert [(c.index, c.message.content) for c in answer.choices] == [
        (index, "abc") for index in range(3)
    ]
    assert answer.usage.completion_tokens == 9
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(
        model="org/tiny-base", messages=said("abc"), n=3, stream=True
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["abc"] * 3


def test_stop_and_limits_reach_the_engine(server, client):
    create = client.chat.completions.create
    stopped = create(model="org/tiny-base", messages=said("one two three"), stop=" t")
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("one", "stop")
    for limit in ("max_tokens", "max_completion_tokens"):
        cut = create(model="org/tiny-base", messages=said("one two"), **{limit: 3})
        assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("one", "length")
    create(
        model="org/tiny-base",
        messages=said("x"),
        seed=-7,
        temperature=0,
        top_p=0.5,
        presence_penalty=-2,
        frequency_penalty=0.5,
        logit_bias={"65": -100, "66": 5},
        stop=["a", "b"],
        extra_body={"top_k": 7, "min_p": 0.1},
    )
    asked = server.engine.seen[-1]
    sampling = asked.sampling
    assert (sampling.seed, sampling.temperature, sampling.top_p) == (-7, 0, 0.5)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (-2, 0.5)
    assert (sampling.logit_bias, sampling.top_k, sampling.min_p) == ({65: -100, 66: 5}, 7, 0.1)
    assert (asked.stop, asked.n, asked.adapter) == (("a", "b"), 1, None)
    assert asked.max_tokens == 4096 - len(asked.prompt)


def test_null_means_the_default_everywhere(client):
    nothing = dict.fromkeys(
        (
            *("temperature", "top_p", "n", "stop", "max_tokens", "logit_bias", "tools", "seed"),
            *("audio", "reasoning_effort", "functions", "stream_options", "metadata"),
            *("tool_choice", "response_format", "logprobs", "top_logprobs"),
        )
    )
    answer = client.chat.completions.create(
        model="org/tiny-base", messages=said("fine"), extra_body=nothing
    )
    assert answer.choices[0].message.content == "fine"


def test_fields_without_effect_are_taken(client):
    answer = client.chat.completions.create(
        model="org/tiny-base",
        messages=said("fine"),
        user="u",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        parallel_tool_calls=True,
        safety_identifier="s",
        prompt_cache_key="k",
        modalities=["text"],
        response_format={"type": "text"},
    )
    assert answer.choices[0].message.content == "fine"


def test_logprobs_hold_the_exact_bytes_of_parts_of_characters(client):
    for stream in (False, True):
        answer = client.chat.completions.create(
            model="org/tiny-base",
            messages=said("aé"),
            logprobs=True,
            top_logprobs=2,
            stream=stream,
        )
        chunks = answer if stream else [answer]
        found = [
            entry
            for c in chunks
            if c.choices[0].logprobs
            for entry in c.choices[0].logprobs.content
        ]
        assert [entry.bytes for entry in found] == [[97], [0xC3], [0xA9]]
        assert [entry.token for entry in found] == ["a", "�", "�"]
        assert [entry.logprob for entry in found] == [-0.5] * 3
        assert [[t.token for t in entry.top_logprobs] for entry in found] == [["A", "B"]] * 3


def test_contents_may_come_in_parts_of_text(client):
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    answer = client.chat.completions.create(
        model="org/tiny-base", messages=[{"role": "user", "content": parts}]
    )
    assert answer.choices[0].message.content == "one two"


def test_an_answer_can_be_sent_back_as_it_came(client):
    first = client.chat.completions.create(model="org/tiny-base", messages=said("hello"))
    again = client.chat.completions.create(
        model="org/tiny-base",
        messages=[*said("hello"), first.choices[0].message.model_dump(), *said("more")[1:]],
    )
    assert again.choices[0].message.content == "more"


def test_an_adapter_answers_with_its_version_in_a_header(server, client):
    digests = [record.digest[:8] for record in registry.versions(server.root, "tickets")]
    for model, number in (("tickets", 3), ("tickets@1", 1), ("tickets@champion", 2)):
        raw = client.chat.completions.with_raw_response.create(model=model, messages=said("x"))
        answer = raw.parse()
        assert answer.choices[0].message.content == f"[{digests[number - 1]}] x"
        assert answer.model == model
        assert raw.headers["x-ftray-version"] == f"tickets@{number}"
        assert raw.headers["x-request-id"].startswith("req_")
    base = client.chat.completions.create(model="org/tiny-base", messages=said("x"))
    assert base.system_fingerprint != answer.system_fingerprint


def test_a_tuned_id_names_a_version_by_its_digest(server, client):
    record = registry.resolve(server.root, "tickets@1")
    model = f"ft:org/tiny-base::tickets:{record.digest[:8]}"
    answer = client.chat.completions.create(model=model, messages=said("x"))
    assert answer.choices[0].message.content == f"[{record.digest[:8]}] x"


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ({"type": "json_object"}, '{"a": [1, 2]}'),
        (
            {
                "type": "json_schema",
                "json_schema": {
                    "name": "point",
                    "strict": True,
                    "schema": {
                        "type": "object",
                        "properties": {"x": {"type": "integer"}},
                        "required": ["x"],
                        "additionalProperties": False,
                    },
                },
            },
            '{"x": 3}',
        ),
    ],
)
def test_a_response_format_holds_the_engine_to_a_grammar(client, form, text):
    create = client.chat.completions.create
    answer = create(model="org/tiny-base", messages=said(text), response_format=form)
    assert json.loads(answer.choices[0].message.content) == json.loads(text)
    with pytest.raises(openai.BadRequestError) as caught:
        create(model="org/tiny-base", messages=said('{"y": '), response_format=form)
    assert caught.value.code == "invalid_schema"


class Point(pydantic.BaseModel):
    """What the client's own helper for structured answers asks for."""

    x: int
    label: str | None


def test_the_clients_helpers_for_schemas_and_streams_work(client):
    parsed = client.chat.completions.parse(
        model="org/tiny-base", messages=said('{"x":1,"label":null}'), response_format=Point
    )
    assert parsed.choices[0].message.parsed == Point(x=1, label=None)
    with client.chat.completions.stream(model="org/tiny-base", messages=said("abc")) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_completion().choices[0].message.content == "abc"
    assert kinds.count("content.delta") >= 3
