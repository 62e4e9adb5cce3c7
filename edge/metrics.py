"""The edge's own figures at `/metrics`: answers by route and status, and how many are running.

Owns plain counters that are read at a scrape; refuses labels without a closed set of values.
"""

from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from services.runtime.telemetry import BUCKETS_S, Durations


class EdgeMetrics(Collector):
    """`mws_edge_request_duration_seconds` and `mws_edge_requests_in_flight`."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._finished: dict[tuple[str, int], Durations] = {}

    def observe(self, route: str, status: int, duration_s: float) -> None:
        """Adds a finished request."""
        durations = self._finished.get((route, status))
        if durations is None:
            durations = self._finished[route, status] = Durations()
        durations.observe(duration_s)

    def collect(self) -> Iterable[HistogramMetricFamily | GaugeMetricFamily]:
        """Reads everything, for a scrape."""
        durations = HistogramMetricFamily(
            "mws_edge_request_duration_seconds",
            "How long requests took until their last byte was handed over, by route and status.",
            labels=("route", "status"),
        )
        for (route, status), child in sorted(self._finished.items()):
            total, buckets = 0, []
            for bound, count in zip([*map(str, BUCKETS_S), "+Inf"], child.counts, strict=True):
                total += count
                buckets.append((bound, float(total)))
            durations.add_metric((route, str(status)), buckets, child.sum_s)
        yield durations
        yield GaugeMetricFamily("mws_edge_requests_in_flight", "Requests that are running now.", self.in_flight)
