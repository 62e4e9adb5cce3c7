"""The figures of this service at `/metrics`.

Owns their names and closed label sets (slugs and upstream names are the catalogue's); takes no label from a caller.
"""

import functools

from prometheus_client import Counter, Gauge, Histogram

_TOKENS = Counter(
    "mws_gen_ai_client_token_usage_tokens",
    "Tokens of finished calls, as charged: by profile and type (input, output).",
    ["profile", "type"],
)
_ENDINGS = Counter("mws_inference_calls", "Admitted calls, by profile and how they ended.", ["profile", "ending"])
_REFUSALS = Counter("mws_inference_refusals", "Calls that admission refused, by what was missing.", ["limit"])
_FIRST_CONTENT_S = Histogram(
    "mws_gen_ai_server_time_to_first_token_seconds",
    "From the arrival of a call to its first content.",
    ["profile"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
_ATTEMPTS = Counter(
    "mws_inference_upstream_attempts",
    "Attempts at upstreams, by outcome: `ok`, `abandoned` or the kind of failure.",
    ["profile", "upstream", "outcome"],
)
SPOOLED = Gauge("mws_inference_spool_events", "Usage events that wait in the spool.")
SPOOL_BYTES = Gauge("mws_inference_spool_bytes", "Bytes of the spool on disk.")
OPEN_HOLDS = Gauge("mws_inference_holds", "Holds that this process renews.")


# Finding a child by its labels takes a lock and copies; the label sets are closed, so the children can be kept.


@functools.cache
def tokens(profile: str, kind: str) -> Counter:
    """Tokens of one kind, `input` or `output`."""
    return _TOKENS.labels(profile, kind)


@functools.cache
def endings(profile: str, ending: str) -> Counter:
    """Calls that ended so."""
    return _ENDINGS.labels(profile, ending)


@functools.cache
def refusals(limit: str) -> Counter:
    """Calls that were refused for it."""
    return _REFUSALS.labels(limit)


@functools.cache
def first_content_s(profile: str) -> Histogram:
    """Times to first content."""
    return _FIRST_CONTENT_S.labels(profile)


@functools.cache
def attempts(profile: str, upstream: str, outcome: str) -> Counter:
    """Attempts that ended so."""
    return _ATTEMPTS.labels(profile, upstream, outcome)
