"""What Prometheus is told about the service; one registry for each process's service."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)


class ServingMetrics:
    """Counters of requests, batches and decisions, and the model that is served.

    Attributes:
        replica: name of this process where several answer at one address, of which a scrape reaches
            any: it becomes a label of all metrics, without which counters would seem to go back.
    """

    def __init__(self, pending: Callable[[], float]) -> None:
        self.replica = ""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fetal_requests",
            "Requests answered",
            ("route", "status"),
            registry=self.registry,
        )
        self.latency = Histogram(
            "fetal_request_seconds",
            "From a request's head to the end of its answer",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram(
            "fetal_batch_images",
            "Images that the engine took at a time",
            buckets=_IMAGES,
            registry=self.registry,
        )
        self.decisions = Counter(
            "fetal_decisions",
            "Frames answered, by class and decision",
            ("plane", "decision"),
            registry=self.registry,
        )
        self.shadow = Counter(
            "fetal_shadow_frames",
            "Frames copied to the shadow model, by whether it agrees",
            ("outcome",),
            registry=self.registry,
        )
        self.model = Gauge(
            "fetal_model_info",
            "1 for the model that is served",
            ("name", "version"),
            registry=self.registry,
        )
        queue = Gauge("fetal_queue_files", "Files admitted and unanswered", registry=self.registry)
        queue.set_function(pending)

    def serve(self, name: str, version: str) -> None:
        """Make ``name`` and ``version`` the only model shown."""
        self.model.clear()
        self.model.labels(name, version).set(1)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        if not self.replica:
            return generate_latest(self.registry)
        return generate_latest(_Labelled(self.registry, {"replica": self.replica}))


class _Labelled(Collector):
    """The metrics of another collector with some labels more."""

    def __init__(self, collector: Collector, labels: dict[str, str]) -> None:
        self._collector, self._labels = collector, labels

    def collect(self) -> Iterator[Metric]:
        for family in self._collector.collect():
            family.samples = [
                sample._replace(labels={**sample.labels, **self._labels})
                for sample in family.samples
            ]
            yield family
