"""Answers to HTTP: a stream of server-sent events, or one JSON body."""

import json
import logging
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ftray.serve.openai.answers import Answer
from ftray.serve.openai.call import Call
from ftray.serve.openai.errors import BUG, GONE, ApiError, json_response
from ftray.serve.openai.presence import while_there

logger = logging.getLogger(__name__)

_PING = b": ping\n\n"
_DONE = b"data: [DONE]\n\n"
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


async def whole(request: Request, call: Call, answer: Answer) -> Response:
    """Wait for the whole answer; a client that leaves ends it."""
    await while_there(request.receive, _collect(call, answer))
    return json_response(answer.body(), headers=call.headers)


async def _collect(call: Call, answer: Answer) -> None:
    answer.opening()
    async for parts in call.parts():
        for part in parts:
            answer.take(part)


class EventStream(Response):
    """An answer that is sent as it is made; a client that leaves ends it."""

    media_type = "text/event-stream"

    def __init__(self, call: Call, answer: Answer, *, tells_usage: bool) -> None:
        super().__init__(headers={**_HEADERS, **call.headers})
        del self.headers["content-length"]
        self._call = call
        self._answer = answer
        self._tells_usage = tells_usage
        call.trace.is_stream = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await while_there(receive, self._send(send))
        except (ApiError, OSError):  # the client has gone: some servers say so when we send
            self._call.trace.error = GONE.code

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async for data in self._events():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[bytes]:
        """Yield what each step adds; an error is an event too, and the last."""
        try:
            opening = b"".join(map(_event, self._answer.opening()))
            async for parts in self._call.parts():
                chunks = [chunk for part in parts for chunk in self._answer.take(part)]
                if data := opening + b"".join(map(_event, chunks)):
                    yield data
                elif not parts:
                    yield _PING
                opening = b""
            if self._tells_usage:
                yield _event(self._answer.usage_chunk())
            yield _DONE
        except ApiError as error:
            self._call.trace.error = error.kind.code
            yield _event(error.body())
        except Exception:  # a bug: the status is long sent, so the client is told in the stream
            logger.exception("request %s failed within its stream", self._call.trace.id)
            self._call.trace.error = BUG.code
            yield _event(ApiError(BUG, f"internal error, request {self._call.trace.id}").body())


def _event(tree: object) -> bytes:
    """Return an event in ASCII: no reader of lines can take a character for a line's end."""
    return f"data: {json.dumps(tree)}\n\n".encode("ascii")
