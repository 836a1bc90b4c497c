"""What is known of a request while it is answered: for the access log, and for its end."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from starlette.requests import Request


@dataclass
class Trace:
    """One request. Its routes fill it in; `on_end` is called when nothing more can be sent."""

    id: str
    started: float  # time.monotonic
    key: str = ""
    project: str = ""
    traceparent: str | None = None  # of its span
    model: str = ""  # an adapter's name or the base's; never what the user wrote
    version: str = ""
    is_stream: bool = False
    prompt_tokens: int = 0
    answer_tokens: int = 0
    first_token_seconds: float | None = None
    error: str | None = None  # the code of an error, also of one within a stream
    on_end: list[Callable[[], None]] = field(default_factory=list)


def trace_of(request: Request) -> Trace:
    """Return the trace that the edge has given to a request."""
    return cast("Trace", request.scope["ftray.trace"])
