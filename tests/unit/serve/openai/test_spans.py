"""What OpenTelemetry is told of a request, and that it is told nothing unasked."""

import builtins
import time

import pytest

from ftray.errors import ServeError
from ftray.serve.spans import NoSpans, open_spans

PATH = "/v1/chat/completions"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CLIENTS = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture(scope="module")
def traced(serve, root, collector):
    server = serve(root)
    server.service.spans = open_spans(collector[0])
    yield server
    server.service.spans.close()


@pytest.fixture
def told(traced, collector, wait_for):
    """Send what is held back, and return the spans that came in this test."""
    before = len(collector[1])

    def spans(count):
        traced.service.spans._provider.force_flush()
        assert wait_for(lambda: len(collector[1]) >= before + count)
        return collector[1][before:]

    return spans


def ask(text, model="tickets@2"):
    return {"model": model, "messages": [{"role": "user", "content": text}]}


def values(span):
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def test_a_request_is_a_span_below_its_clients_without_a_word_of_it(traced, send, told):
    reply = send(traced, "POST", PATH, ask("secret words"), traceparent=CLIENTS)
    [span] = told(1)
    assert (span.name, span.trace_id.hex()) == (f"POST {PATH}", TRACE)
    assert span.parent_span_id.hex() == PARENT
    found = values(span)
    assert found["http.response.status_code"] == 200
    assert found["gen_ai.response.model"] == "tickets@2"
    assert found["gen_ai.usage.output_tokens"] == reply.json["usage"]["completion_tokens"]
    assert found["ftray.request"] == reply.headers["x-request-id"]
    assert b"secret" not in span.SerializeToString()


def test_the_engine_is_told_which_span_its_work_belongs_to(traced, send, told):
    send(traced, "POST", PATH, ask("one more"), traceparent=CLIENTS)
    [span] = told(1)
    assert traced.engine.seen[-1].traceparent == f"00-{TRACE}-{span.span_id.hex()}-01"


def test_an_error_of_ours_is_one_and_a_users_is_none(traced, send, told):
    send(traced, "POST", PATH, ask("!crash"))
    send(traced, "POST", PATH, ask("hello", model="nobody"))
    ours, users = told(2)
    assert (ours.status.code, values(ours)["http.response.status_code"]) == (2, 500)
    assert (users.status.code, values(users)["http.response.status_code"]) == (0, 404)


def test_what_a_client_does_not_sample_and_probes_are_not_told(traced, send, told):
    send(traced, "POST", PATH, ask("unsampled"), traceparent=CLIENTS[:-2] + "00")
    send(traced, "GET", "/readyz")
    send(traced, "POST", PATH, ask("nonsense"), traceparent="00-nonsense")
    [span] = told(1)
    assert not span.parent_span_id


def test_without_a_collector_there_are_no_spans(server):
    assert isinstance(open_spans(None), NoSpans)
    assert isinstance(server.service.spans, NoSpans)


def test_a_collector_that_is_away_delays_no_end(serve, root, send):
    server = serve(root)
    server.service.spans = open_spans("http://127.0.0.1:9")
    assert send(server, "POST", PATH, ask("hello")).status == 200
    began = time.monotonic()
    server.service.spans.close()
    assert time.monotonic() - began < 5


def test_without_the_extra_the_setting_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "ftray.serve.otel":
            raise ModuleNotFoundError("No module named 'opentelemetry'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ServeError, match=r"otlp=http://c:4318 needs") as caught:
        open_spans("http://c:4318")
    assert caught.value.hint == "pip install 'ftray[otel]'"
