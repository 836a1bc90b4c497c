"""What a stream is on the wire, and what becomes of a request whose client leaves."""

import http.client
import json
import logging

import openai
import pytest

from ftray.serve.openai.edge import access_log, keep_access_log
from ftray.serve.openai.service import Settings

PATH = "/v1/chat/completions"


def chat(text: str, **changes: object) -> dict[str, object]:
    messages = [{"role": "user", "content": text}]
    return {"model": "org/tiny-base", "messages": messages, **changes}


@pytest.fixture(scope="module")
def slow(serve, root):
    """A server that takes 50 ms for a step, and pings after 20 ms."""
    return serve(root, step_seconds=0.05, settings=Settings(ping_seconds=0.02))


def test_a_stream_is_events_with_an_end(server, send):
    reply = send(server, "POST", PATH, chat("\u2028a\x85b\nc", stream=True))
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-accel-buffering"] == "no"
    assert reply.headers["x-ftray-version"] == "org/tiny-base"
    assert "content-length" not in reply.headers
    assert reply.body.isascii()
    events = reply.body.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert "usage" not in chunks[0]
    said = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert said == "\u2028a\x85b\nc"


def test_a_waiting_client_hears_pings_and_the_answer_is_whole(slow, send):
    reply = send(slow, "POST", PATH, chat("abc", stream=True))
    assert b": ping\n\n" in reply.body
    chunks = slow.client.chat.completions.create(**chat("abc"), stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "abc"


def test_an_error_within_a_stream_is_an_event_that_the_client_raises(server, client):
    stream = client.chat.completions.create(**chat("!crash"), stream=True)
    said = []
    with pytest.raises(openai.APIError, match="the engine has stumbled") as caught:
        said.extend(chunk.choices[0].delta.content for chunk in stream)
    assert "".join(text for text in said if text) == "!cr"
    assert caught.value.code == "internal_error"


def test_an_error_within_a_whole_answer_is_a_status(server, send):
    reply = send(server, "POST", PATH, chat("!crash"))
    assert (reply.status, reply.error["code"]) == (500, "internal_error")


def test_a_refusal_is_a_status_also_where_a_stream_was_asked_for(server, send):
    reply = send(server, "POST", PATH, chat("x", stream=True, model="nobody"))
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_generations(slow, wait_for, stream):
    cancelled, seen = len(slow.engine.cancelled), len(slow.engine.seen)
    connection = http.client.HTTPConnection(slow.url.removeprefix("http://"))
    connection.request("POST", PATH, json.dumps(chat("x" * 500, stream=stream, n=2)))
    assert wait_for(lambda: len(slow.engine.seen) > seen)
    if stream:
        assert connection.getresponse().readline().startswith(b"data: ")
    connection.close()
    assert wait_for(lambda: len(slow.engine.cancelled) == cancelled + 1)
    assert 'ftray_cancels_total{model="org/tiny-base"}' in slow.metrics


def test_the_client_of_openai_can_close_a_stream(slow, wait_for):
    cancelled = len(slow.engine.cancelled)
    with slow.client.chat.completions.create(**chat("x" * 500), stream=True) as stream:
        next(iter(stream))
    assert wait_for(lambda: len(slow.engine.cancelled) == cancelled + 1)


def test_a_failure_of_one_prompt_ends_the_others(slow, send, wait_for):
    cancelled = len(slow.engine.cancelled)
    prompts = [f"<|im_start|>user\n{text}<|im_end|>" for text in ("x" * 500, "!crash")]
    body = {"model": "org/tiny-base", "prompt": prompts, "max_tokens": 1000}
    assert send(slow, "POST", "/v1/completions", body).status == 500
    assert wait_for(lambda: len(slow.engine.cancelled) == cancelled + 1)


def test_every_request_leaves_one_line_without_its_text(server, send, caplog, wait_for):
    with caplog.at_level(logging.INFO, "ftray.access"):
        reply = send(server, "POST", PATH, chat("secret words", model="tickets@2", user="u1"))
        assert wait_for(lambda: [r for r in caplog.records if r.name == "ftray.access"] != [])
    [text] = [r.getMessage() for r in caplog.records if r.name == "ftray.access"]
    line = json.loads(text)
    assert line["request"] == reply.headers["x-request-id"]
    assert (line["path"], line["status"], line["error"]) == (PATH, 200, None)
    assert (line["model"], line["version"]) == ("tickets", "tickets@2")
    usage = reply.json["usage"]
    assert line["answer_tokens"] == usage["completion_tokens"]
    assert line["prompt_tokens"] == usage["prompt_tokens"]
    assert line["first_token_seconds"] <= line["seconds"]
    assert "secret" not in text


def test_the_lines_go_to_a_file_even_if_that_was_moved_away(
    server, send, tmp_path, monkeypatch, caplog, wait_for
):
    caplog.set_level(logging.INFO, "ftray.access")  # which is as before afterwards, caches included
    for name in ("handlers", "propagate"):
        monkeypatch.setattr(access_log, name, getattr(access_log, name))
    log = tmp_path / "access.jsonl"
    keep_access_log(str(log))
    first = send(server, "GET", "/healthz").headers["x-request-id"]
    assert wait_for(lambda: first in log.read_text())
    log.rename(tmp_path / "access.1.jsonl")  # as logrotate does
    second = send(server, "GET", "/healthz").headers["x-request-id"]
    assert wait_for(lambda: log.exists() and second in log.read_text())
    assert json.loads(log.read_text())["path"] == "/healthz"
    access_log.handlers[0].close()


def test_metrics_count_by_model_version_and_code(serve, root, send):
    server = serve(root)
    for model, stream in (("tickets@2", False), ("tickets@champion", True), ("nobody", False)):
        send(server, "POST", PATH, chat("abc", model=model, stream=stream))
    text = send(server, "GET", "/metrics").body.decode()
    labels = 'model="tickets",version="tickets@2"'
    for line in (
        f'ftray_requests_total{{code="200",{labels}}} 2.0',
        'ftray_requests_total{code="404",model="",version=""} 1.0',
        f"ftray_answer_tokens_total{{{labels}}} 28.0",
        'ftray_time_to_first_token_seconds_count{model="tickets"} 2.0',
        "ftray_engine_steps_total 7.0",
        "ftray_engine_rows 0.0",
    ):
        assert line in text
    assert "nobody" not in text
