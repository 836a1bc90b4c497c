"""The outermost layer: request ids, the access log, an end for everything, and a face for bugs."""

import json
import logging
import re
import time
import uuid
from logging.handlers import WatchedFileHandler

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ftray.serve.openai.errors import BUG, GONE, ApiError
from ftray.serve.openai.service import Service
from ftray.serve.openai.trace import Trace
from ftray.serve.spans import Attributes, NoSpans, Span

logger = logging.getLogger(__name__)
access_log = logging.getLogger("ftray.access")

_SERVED = ("/v1/chat/completions", "/v1/completions")  # whose requests are counted by model


def keep_access_log(path: str | None) -> None:
    """Write the access log of this process to a file, or to stderr, whatever else logs there."""
    handler = WatchedFileHandler(path, encoding="utf-8") if path else logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    access_log.setLevel(logging.INFO)
    access_log.propagate = False
    access_log.handlers = [handler]


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = Trace(_given_id(scope) or f"req_{uuid.uuid4().hex}", time.monotonic())
        scope["ftray.trace"] = trace
        span = self._begun(scope)
        trace.traceparent = span.traceparent
        answer = _Answer(send, trace.id if self._service.settings.sends_ids else None)
        try:
            await self._app(scope, receive, answer.send)
        except Exception:  # a bug must not end a connection without a word
            logger.exception("request %s failed", trace.id)
            trace.error = BUG.code
            if not answer.status:
                error = ApiError(BUG, f"internal error; the server's log has it as {trace.id}")
                await error.response()(scope, receive, answer.send)
        finally:
            for end in trace.on_end:
                end()
            status = answer.status or GONE.status  # 0: cancelled by Ray Serve
            self._record(scope, trace, status)
            span.end(_attributes(scope, trace, status), trace.error if status >= 500 else None)

    def _begun(self, scope: Scope) -> Span:
        """Begin a request's span, below the client's own if it names one; probes have none."""
        spans = self._service.spans if scope["path"] in _SERVED else NoSpans()
        parent = _header(scope, b"traceparent")
        return spans.begin(f"{scope['method']} {scope['path']}", "server", parent)

    def _record(self, scope: Scope, trace: Trace, status: int) -> None:
        if scope["path"] in _SERVED:
            self._service.metrics.requests.labels(trace.model, trace.version, str(status)).inc()
        line = {
            "time": round(time.time(), 3),
            "request": trace.id,
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": status,
            "error": trace.error,
            "model": trace.model,
            "version": trace.version,
            "key": trace.key,
            "project": trace.project,
            "stream": trace.is_stream,
            "prompt_tokens": trace.prompt_tokens,
            "answer_tokens": trace.answer_tokens,
            "first_token_seconds": trace.first_token_seconds,
            "seconds": round(time.monotonic() - trace.started, 4),
        }
        access_log.info(json.dumps(line))


def _attributes(scope: Scope, trace: Trace, status: int) -> Attributes:
    """Describe a request in the words of OpenTelemetry's conventions."""
    return {
        "http.request.method": scope["method"],
        "http.response.status_code": status,
        "url.path": scope["path"],
        "gen_ai.request.model": trace.model,
        "gen_ai.response.model": trace.version,
        "gen_ai.usage.input_tokens": trace.prompt_tokens,
        "gen_ai.usage.output_tokens": trace.answer_tokens,
        "ftray.request": trace.id,
        "ftray.key": trace.key,
    }


def _given_id(scope: Scope) -> str | None:
    """Return the id that a proxy or the client has given the request, if it can be one."""
    given = _header(scope, b"x-request-id") or ""
    return given if re.fullmatch(r"[\w.:-]{1,128}", given, re.ASCII) else None


def _header(scope: Scope, name: bytes) -> str | None:
    values = (value.decode("latin-1") for key, value in scope["headers"] if key == name)
    return next(values, None)


class _Answer:
    """What has been sent of an answer: its status, with the request's id put into the headers."""

    def __init__(self, send: Send, id: str | None) -> None:
        self.status = 0
        self._send = send
        self._headers = [] if id is None else [(b"x-request-id", id.encode())]

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), *self._headers]
            message = {**message, "headers": headers}
        await self._send(message)
