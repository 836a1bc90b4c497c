"""What Prometheus is told: counts of the HTTP side, and the engine's own."""

from collections.abc import Iterable
from dataclasses import asdict

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ftray.serve.protocol import EngineStats

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """One server's metrics, in a registry of their own.

    Labels are names of what is published, never what a user wrote: their number stays bounded.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        of_model, of_version = ("model",), ("model", "version")
        self.requests = self._counter(
            "ftray_requests", "Requests by answer.", (*of_version, "code")
        )
        self.prompt_tokens = self._counter("ftray_prompt_tokens", "Tokens read.", of_version)
        self.answer_tokens = self._counter("ftray_answer_tokens", "Tokens written.", of_version)
        self.refusals = self._counter("ftray_refusals", "Requests refused, by reason.", ("code",))
        self.cancels = self._counter("ftray_cancels", "Clients that left early.", of_model)
        self.shadows = self._counter(
            "ftray_shadow_requests", "Copies sent to a shadow.", ("version", "outcome")
        )
        self.first_token = self._histogram(
            "ftray_time_to_first_token_seconds", "From the request to its first token."
        )
        self.between_tokens = self._histogram(
            "ftray_inter_token_seconds", "Between two steps that added to an answer."
        )
        self._engine = _EngineCollector()
        self._registry.register(self._engine)

    def text(self, stats: EngineStats | None) -> bytes:
        """Return everything in Prometheus' text format; None: there is no engine yet."""
        self._engine.stats = stats
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, ("model",), buckets=_SECONDS, registry=self._registry)


class _EngineCollector(Collector):
    """The engine's counts as they are at a scrape."""

    def __init__(self) -> None:
        self.stats: EngineStats | None = None

    def collect(self) -> Iterable[Metric]:
        """Yield one metric a field of EngineStats."""
        if self.stats is None:
            return
        for name, value in asdict(self.stats).items():
            family = CounterMetricFamily if name in _COUNTED else GaugeMetricFamily
            yield family(f"ftray_engine_{name}", f"The engine's {name}.", value=value)


_COUNTED = {
    *("loads", "load_seconds", "evictions", "thrashes", "steps"),
    *("prompt_tokens", "answer_tokens", "cancelled"),
}
