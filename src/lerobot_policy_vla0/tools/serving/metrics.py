"""What a server counts, for Prometheus: robots, requests by outcome, answers, batches, and how long things take."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class Metrics:
    """The figures of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.robots = Gauge("vla0_robots", "Robots that are connected", ["protocol"], registry=registry)
        self.requests = Counter(
            "vla0_requests",
            "Observations, by what became of them",
            ["protocol", "outcome"],
            registry=registry,
        )
        self.latency = Histogram(
            "vla0_request_seconds",
            "From an observation to its answer",
            ["protocol"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.chunks = Counter("vla0_chunks", "Chunks that the model wrote", registry=registry)
        self.batch = Histogram(
            "vla0_batch_robots", "Robots answered in one decode", buckets=_ROWS, registry=registry
        )
        self.decode = Histogram("vla0_decode_seconds", "One decode", buckets=_SECONDS, registry=registry)
        self.wait = Histogram(
            "vla0_wait_seconds",
            "From a request to the decode that answers it",
            buckets=_SECONDS,
            registry=registry,
        )

    def observe_decode(self, robots: int, seconds: float, waits: Sequence[float]) -> None:
        """Count a decode; see `shared_model.Observer`."""
        self.chunks.inc(robots)
        self.batch.observe(robots)
        self.decode.observe(seconds)
        for wait in waits:
            self.wait.observe(max(wait, 0.0))

    def as_text(self) -> bytes:
        """Return the figures in Prometheus' text format."""
        text: bytes = generate_latest(self.registry)
        return text
