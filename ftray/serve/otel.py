"""Spans for an OpenTelemetry collector (OTLP over HTTP); the extra `otel`."""

from typing import Literal

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ftray import __version__
from ftray.serve.spans import Attributes

_SEND_SECONDS = 2.0  # a collector that is away holds up nobody's end
_KINDS = {"server": SpanKind.SERVER, "internal": SpanKind.INTERNAL}
_CONTEXT = TraceContextTextMapPropagator()


class SentSpans:
    """Spans that a thread of its own sends in batches; what a collector does not take is lost."""

    def __init__(self, collector: str) -> None:
        who = Resource.create({"service.name": "ftray", "service.version": __version__})
        exporter = OTLPSpanExporter(f"{collector.rstrip('/')}/v1/traces", timeout=_SEND_SECONDS)
        self._provider = TracerProvider(resource=who, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("ftray", __version__)

    def begin(
        self, name: str, kind: Literal["server", "internal"], parent: str | None
    ) -> "SentSpan":
        """Begin a span; a parent that nobody samples has none below it."""
        context = _CONTEXT.extract({"traceparent": parent} if parent else {})
        return SentSpan(self._tracer.start_span(name, context, _KINDS[kind]))

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()


class SentSpan:
    """A span of OpenTelemetry's."""

    def __init__(self, span: OtelSpan) -> None:
        self._span = span
        carrier: dict[str, str] = {}
        _CONTEXT.inject(carrier, set_span_in_context(span))
        self.traceparent = carrier.get("traceparent")

    def event(self, name: str) -> None:
        """Say that something has happened now."""
        self._span.add_event(name)

    def end(self, attributes: Attributes, error: str | None = None) -> None:
        """End it."""
        self._span.set_attributes(attributes)
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()
