"""Every refusal has OpenAI's shape, a status that tells whether to try again, and a parameter."""

import json

import openai
import pytest

from ftray import registry
from ftray.serve.openai.errors import refused
from ftray.serve.openai.service import Settings
from ftray.serve.protocol import RefusedError

MESSAGES = [{"role": "user", "content": "x"}]
CHAT = {"model": "org/tiny-base", "messages": MESSAGES}
PATH = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"temperature": 2.5}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_value"),
        ({"temperature": True}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"n": 17}, "n", "invalid_value"),
        ({"n": 1.5}, "n", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, None, "invalid_value"),
        ({"presence_penalty": -3}, "presence_penalty", "invalid_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "invalid_value"),
        ({"logit_bias": {"99999": 1}}, "logit_bias.99999", "invalid_value"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": ["a", "token " * 10_000]}, "stop", "invalid_value"),
        ({"stop": [1]}, "stop.0", "invalid_value"),
        ({"top_logprobs": 1}, None, "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, None, "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"store": True}, "store", "invalid_value"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "invalid_value"),
        ({"audio": {}}, "audio", "unsupported_parameter"),
        ({"functions": []}, "functions", "unsupported_parameter"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter"),
        ({"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"nothing": None}, "nothing", "unknown_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing_required_parameter"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages.0", "invalid_value"),
        ({"messages": [{"role": "assistant"}]}, "messages.0", "invalid_value"),
        ({"messages": [{**MESSAGES[0], "mood": 1}]}, "messages.0.mood", "unknown_parameter"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content",
            "unsupported_parameter",
        ),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(server, send, changes, param, code):
    reply = send(server, "POST", PATH, {**CHAT, **changes})
    assert (reply.status, reply.error["param"], reply.error["code"]) == (400, param, code)
    assert reply.error["type"] == "invalid_request_error"
    assert "x-request-id" in reply.headers


def test_a_typo_is_answered_with_what_was_meant(server, send):
    message = send(server, "POST", PATH, {**CHAT, "temprature": 1}).error["message"]
    assert message == "'temprature' is not known; did you mean 'temperature'?"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe{}",
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"temperature": NaN}',
        b'{"seed": ' + b"9" * 6000 + b"}",
        b"[" * 100_000,
        b'{"messages": ' + b'{"a":' * 5000,
    ],
)
def test_what_is_no_json_object_is_a_400(server, send, body):
    reply = send(server, "POST", PATH, body)
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("PUT", "/v1/models/x", 405),
        ("GET", "/v1/models/", 404),
        ("GET", "/docs", 404),
    ],
)
def test_unknown_paths_and_methods_have_the_shape_too(server, send, method, path, status):
    reply = send(server, method, path)
    assert (reply.status, reply.error["type"]) == (status, "invalid_request_error")


@pytest.mark.parametrize(
    "model",
    [
        "nobody",
        "tickets@9",
        "tickets@0",
        "tickets@nobody",
        "tickets@",
        "@",
        "../tickets",
        "tickets/../tickets",
        "tickets@../../x",
        "/etc/passwd",
        "..%2f..%2fetc",
        "ft:a:b:c",
        "ft:org/tiny-base::tickets:00000000",
        "ft:org/tiny-base::../../x:00000000",
        "tickets\x00",
        "TICKETS",
        "ü" * 200,
    ],
)
def test_an_unknown_model_is_a_404_and_never_a_path(server, send, model):
    reply = send(server, "POST", PATH, {**CHAT, "model": model})
    assert (reply.status, reply.error["code"], reply.error["param"]) == (
        404,
        "model_not_found",
        "model",
    )
    assert server.root not in reply.body.decode()


def test_a_model_of_another_base_is_refused_in_words(server, send, published):
    published("foreign", fingerprint="0" * 64)
    published("whole", kind="full")
    for model in ("foreign", "whole"):
        reply = send(server, "POST", PATH, {**CHAT, "model": model})
        assert (reply.status, reply.error["code"]) == (400, "model_not_servable")


def test_an_adapter_that_the_engine_cannot_run_is_a_400(server, send, published, tmp_path):
    record = published("odd", files={"weights.bin": b"x"})
    reply = send(server, "POST", PATH, {**CHAT, "model": record.ref})
    assert (reply.status, reply.error["code"]) == (400, "model_not_servable")
    assert "adapter_config.json" in reply.error["message"]


def test_a_damaged_adapter_is_not_served(server, send, published):
    record = published("damaged")
    path = registry.adapter_folder(server.root, record) + "/adapter_model.safetensors"
    with open(path, "wb") as file:
        file.write(b"rot")
    reply = send(server, "POST", PATH, {**CHAT, "model": "damaged"})
    assert (reply.status, reply.error["code"]) == (400, "model_not_servable")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PATH, {**CHAT, "messages": [{"role": "user", "content": "x" * 5000}]}),
        (PATH, {**CHAT, "max_tokens": 5000}),
        (PATH, {**CHAT, "messages": [{"role": "user", "content": "x" * 3_000_000}]}),
        ("/v1/completions", {"model": "org/tiny-base", "prompt": "x" * 5000}),
        ("/v1/completions", {"model": "org/tiny-base", "prompt": "x" * 3_000_000}),
        ("/v1/completions", {"model": "org/tiny-base", "prompt": [5] * 4096}),
    ],
)
def test_what_can_never_fit_the_context_is_a_400(server, send, path, body):
    reply = send(server, "POST", path, body)
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
    assert "maximum context length is 4096 tokens" in reply.error["message"]


def test_a_body_beyond_the_cap_is_a_413(serve, root, send):
    server = serve(root, settings=Settings(max_body_bytes=1000))
    body = json.dumps({**CHAT, "user": "x" * 2000}).encode()
    told = send(server, "POST", PATH, body)
    assert (told.status, told.error["code"]) == (413, "request_too_large")
    chunked = send(server, "POST", PATH, iter([body[:500], body[500:]]))
    assert (chunked.status, chunked.error["code"]) == (413, "request_too_large")


def test_a_full_queue_is_a_429_that_says_when_to_come_back(serve, root, send):
    server = serve(root, room=0)
    reply = send(server, "POST", PATH, CHAT)
    assert (reply.status, reply.headers["retry-after"]) == (429, "1")
    assert (reply.error["type"], reply.error["code"]) == ("rate_limit_error", "queue_full")
    assert 'ftray_refusals_total{code="queue_full"} 1.0' in server.metrics


def test_a_draining_server_refuses_what_is_new(serve, root, send):
    server = serve(root)
    server.service.is_draining = True
    reply = send(server, "POST", PATH, CHAT)
    assert (reply.status, reply.error["code"]) == (503, "draining")
    assert reply.headers["retry-after"] == "5"
    assert send(server, "GET", "/readyz").status == 503
    assert send(server, "GET", "/healthz").status == 200


def test_a_bug_is_a_500_in_shape_and_in_the_log(serve, root, send, caplog):
    server = serve(root)
    server.service.models = None
    reply = send(server, "POST", PATH, CHAT)
    assert (reply.status, reply.error["type"]) == (500, "server_error")
    assert reply.headers["x-request-id"] in reply.error["message"]
    [record] = [r for r in caplog.records if reply.headers["x-request-id"] in r.getMessage()][:1]
    assert record.exc_info is not None


def test_the_client_raises_the_right_errors(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nobody", messages=MESSAGES)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert caught.value.request_id.startswith("req_")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="org/tiny-base", messages=MESSAGES, temperature=3)
    assert caught.value.param == "temperature"


@pytest.mark.parametrize(
    ("code", "status", "retry_after"),
    [
        ("context_length", 400, None),
        ("queue_full", 429, "1"),
        ("draining", 503, "5"),
        ("bad_adapter", 400, None),
        ("bad_grammar", 400, None),
        ("deadline", 504, "5"),
        ("internal", 500, None),
    ],
)
def test_every_refusal_of_an_engine_has_its_status(code, status, retry_after):
    response = refused(RefusedError("no", "try less", code)).response()
    assert (response.status_code, response.headers.get("retry-after")) == (status, retry_after)
    assert json.loads(response.body)["error"]["message"] == "no (try less)"
