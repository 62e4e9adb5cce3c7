"""The figures of this service at `/metrics`.

Owns their names and closed label sets (slugs and upstream names are the catalogue's); takes no label from a caller.
"""

import functools
from collections import defaultdict
from collections.abc import Iterable, Sequence

from prometheus_client import REGISTRY, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector


class Counts(Collector):
    """A counter: plain integers by their labels, read at a scrape, since prometheus children take a lock per sample."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        self.by: defaultdict[tuple[str, ...], int] = defaultdict(int)
        self._family = functools.partial(CounterMetricFamily, name, documentation, labels=labels)
        REGISTRY.register(self)

    def collect(self) -> Iterable[CounterMetricFamily]:
        """Reads everything, for a scrape."""
        family = self._family()
        for labels, count in sorted(self.by.copy().items()):
            family.add_metric(labels, count)
        yield family


TOKENS = Counts(
    "mws_gen_ai_client_token_usage_tokens",
    "Tokens of finished calls, as charged: by profile and type (input, output).",
    ["profile", "type"],
)
ENDINGS = Counts("mws_inference_calls", "Admitted calls, by profile and how they ended.", ["profile", "ending"])
REFUSALS = Counts("mws_inference_refusals", "Calls that admission refused, by what was missing.", ["limit"])
ATTEMPTS = Counts(
    "mws_inference_upstream_attempts",
    "Attempts at upstreams, by outcome: `ok`, `abandoned` or the kind of failure.",
    ["profile", "upstream", "outcome"],
)
_FIRST_CONTENT_S = Histogram(
    "mws_gen_ai_server_time_to_first_token_seconds",
    "From the arrival of a call to its first content.",
    ["profile"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
SPOOLED = Gauge("mws_inference_spool_events", "Usage events that wait in the spool.")
SPOOL_BYTES = Gauge("mws_inference_spool_bytes", "Bytes of the spool on disk.")
OPEN_HOLDS = Gauge("mws_inference_holds", "Holds that this process renews.")


@functools.cache
def first_content_s(profile: str) -> Histogram:
    """Times to first content. Finding a child by its labels takes a lock and copies; the label set is closed."""
    return _FIRST_CONTENT_S.labels(profile)
