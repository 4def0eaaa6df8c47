"""Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from digit_detector.webapp.clients import Quota
from digit_detector.webapp.sessions import Sessions
from digit_detector.webapp.uploads import UploadProcessor
from digit_detector.webapp.websocket import WebSocketServer
from digit_detector.webapp.worker_pool import WorkerPool


class Metrics(Collector):
    """Collects the counts of the services at each scrape."""

    def __init__(
        self, pool: WorkerPool, sockets: WebSocketServer, sessions: Sessions, uploads: UploadProcessor, downloads: Quota
    ) -> None:
        self._pool, self._sockets, self._sessions = pool, sockets, sessions
        self._uploads, self._downloads = uploads, downloads
        self.requests: dict[tuple[str, int], int] = {}  # by route and status
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def count(self, route: str, status: int) -> None:
        """Count an answered request."""
        self.requests[route, status] = self.requests.get((route, status), 0) + 1

    def page(self) -> bytes:
        """Render the text format of Prometheus."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("digits_connections", "open WebSockets", self._sockets.count)
        yield GaugeMetricFamily("digits_streams", "open live streams", self._pool.streams)
        for name in ("digits_detected", "digits_heard"):  # the second name is deprecated
            yield CounterMetricFamily(name, "digits detected in live streams", self._pool.digits)
        for name in ("digits_audio_seconds", "digits_heard_seconds"):
            yield CounterMetricFamily(name, "audio received in live streams", self._pool.seconds)
        yield GaugeMetricFamily("digits_workers", "workers that accept a stream", self._pool.workers_alive)
        yield CounterMetricFamily("digits_worker_restarts", "workers that were restarted", self._pool.restarts)
        yield GaugeMetricFamily("digits_sessions", "open sessions", len(self._sessions))
        yield GaugeMetricFamily("digits_kept_bytes", "audio that sessions keep", self._sessions.kept_bytes)
        yield GaugeMetricFamily("digits_uploads", "recordings in progress or waiting", self._uploads.count)
        yield GaugeMetricFamily("digits_downloads", "downloads of kept audio in progress", self._downloads.total)
        requests = CounterMetricFamily("digits_requests", "requests by route and status", labels=("route", "status"))
        for (route, status), count in sorted(self.requests.items()):
            requests.add_metric((route, str(status)), count)
        yield requests
        answers = CounterMetricFamily("digits_answers", "recordings by outcome", labels=("method", "outcome"))
        times = GaugeMetricFamily("digits_answer_ms", "ms of the last 1,000 answers", labels=("method", "quantile"))
        for name, processor in self._uploads.processors.items():
            statistics = processor.statistics
            for digit, count in enumerate(statistics.digits):
                answers.add_metric((name, str(digit)), count)
            answers.add_metric((name, "nothing"), statistics.nothing)
            answers.add_metric((name, "error"), statistics.errors)
            times.add_metric((name, "0.5"), statistics.p50_ms)
            times.add_metric((name, "0.95"), statistics.p95_ms)
        yield answers
        yield times
