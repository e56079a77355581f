"""What Prometheus is told."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Measures:
    """The counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

        self.requests = Counter("medrag_requests_total", "Requests by route and status.", ("route", "status"), registry=self.registry)
        self.seconds = Histogram("medrag_request_seconds", "Time to the end of a response.", ("route",), buckets=SECONDS, registry=self.registry)
        self.answers = Counter("medrag_answers_total", "Answers: answered, refused, prescription or emergency.", ("outcome",), registry=self.registry)
        self.confidence = Histogram(
            "medrag_confidence", "Confidence of answers and refusals.", buckets=[tenth / 10 for tenth in range(1, 11)], registry=self.registry
        )
        self.waiting = Gauge("medrag_queue_waiting", "Requests that wait for a worker.", registry=self.registry)
        self.batch = Histogram("medrag_batch_size", "Jobs given to a worker at once.", buckets=(1, 2, 3, 4, 6, 8, 12, 16, 32), registry=self.registry)
        self.rejected = Counter("medrag_rejected_total", "Requests not answered: full, deadline, not_ready.", ("reason",), registry=self.registry)
        self.swaps = Counter("medrag_swaps_total", "Changes to a new index or model: done, failed.", ("result",), registry=self.registry)
        self.restarts = Counter("medrag_worker_restarts_total", "Workers started in place of one that ended.", registry=self.registry)
        self.worker_memory = Gauge("medrag_worker_memory_bytes", "Resident memory of the processes that answer.", registry=self.registry)
        self.versions = Gauge("medrag_version_info", "What serves now.", ("model", "index"), registry=self.registry)

    def version(self, versions: Mapping[str, Mapping[str, str]]) -> None:
        """What serves from now on, by method."""
        self.versions.clear()
        for one in versions.values():
            self.versions.labels(one["model"], one["index"]).set(1)

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)
