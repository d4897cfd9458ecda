"""What Prometheus is told about the service; one registry for each process's service."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)


class ServingMetrics:
    """Counters of requests, batches and decisions, and the model that is served."""

    def __init__(self, pending: Callable[[], float]) -> None:
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
        return generate_latest(self.registry)
