"""Figures for Prometheus: what the HTTP side counts, and what the engine says of itself when it is asked."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

_GAUGES = {
    "running": "Requests in the running batch.",
    "waiting": "Requests that wait for a slot.",
    "num_slots": "Most requests in a batch.",
    "max_queue": "Most requests that may wait.",
    "image_bytes": "Held by encoded images.",
}
_COUNTERS = {
    "tokens": "Tokens written.",
    "prompt_tokens": "Tokens of prompts read.",
    "restarts": "Times that the model's process was started again.",
    "image_hits": "Images that were still encoded from an earlier request.",
    "image_misses": "Images that had to be encoded.",
}


class Metrics:
    """The figures of one server."""

    def __init__(self, engine):
        self.registry = CollectorRegistry()
        self.registry.register(_EngineFigures(engine))
        named = {"registry": self.registry}
        self._requests = Counter("sightline_requests", "Requests answered.", ["route", "status"], **named)
        self._seconds = Histogram(
            "sightline_request_seconds", "Time of a request.", ["route"], buckets=_SECONDS, **named
        )
        self._first_token = Histogram(
            "sightline_first_token_seconds", "Time to the first token.", buckets=_SECONDS, **named
        )

    def observe(self, record: dict) -> None:
        """Take in the line that the log has of a request."""
        # Paths and methods that clients make up must not become series.
        route = record["route"] or "other"
        self._requests.labels(route, str(record["status"])).inc()
        self._seconds.labels(route).observe(record["seconds"])
        if "first_token_s" in record:
            self._first_token.observe(record["first_token_s"])

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)


class _EngineFigures:
    """Asks the engine when Prometheus asks."""

    def __init__(self, engine):
        self._engine = engine

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        stats = self._engine.stats()
        yield GaugeMetricFamily("sightline_ready", "1 when requests are answered.", value=int(self._engine.ready))
        for kind, names in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
            for name, text in names.items():
                if (value := getattr(stats, name, None)) is not None:
                    yield kind(f"sightline_{name}", text, value=value)
