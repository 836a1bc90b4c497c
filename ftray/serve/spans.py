"""What a request and its generations took, told to OpenTelemetry where it is asked for."""

from collections.abc import Mapping
from typing import Literal, Protocol

from ftray.errors import ServeError

Attributes = Mapping[str, str | int]  # never a part of a prompt or of an answer


class Span(Protocol):
    """One thing that takes its time."""

    @property
    def traceparent(self) -> str | None:
        """What a span below it begins with, as W3C's Trace Context writes it."""
        ...

    def event(self, name: str) -> None:
        """Say that something has happened now."""
        ...

    def end(self, attributes: Attributes, error: str | None = None) -> None:
        """End it; once."""
        ...


class Spans(Protocol):
    """Where spans go."""

    def begin(self, name: str, kind: Literal["server", "internal"], parent: str | None) -> Span:
        """Begin a span below one of another process, or of nobody's."""
        ...

    def close(self) -> None:
        """Send what has not been sent."""
        ...


def open_spans(collector: str | None) -> Spans:
    """Return where spans go; raises ServeError where the extra for it is missing."""
    if collector is None:
        return NoSpans()
    try:
        from ftray.serve.otel import SentSpans
    except ModuleNotFoundError as error:
        raise ServeError(
            f"otlp={collector} needs OpenTelemetry: {error}", "pip install 'ftray[otel]'"
        ) from None
    return SentSpans(collector)


class NoSpans:
    """Nobody wants to know."""

    def begin(self, name: str, kind: Literal["server", "internal"], parent: str | None) -> Span:
        """Begin nothing, and hand on what others have begun."""
        return _NoSpan(parent)

    def close(self) -> None:
        """Do nothing."""


class _NoSpan:
    def __init__(self, parent: str | None) -> None:
        self.traceparent = parent

    def event(self, name: str) -> None:
        pass

    def end(self, attributes: Attributes, error: str | None = None) -> None:
        pass
