"""A limits snapshot as the six `x-ratelimit-*` headers, in OpenAI's format.

Owns names and the Go-style durations; refuses to decide any limit.
"""

from google.protobuf.duration_pb2 import Duration
from mws.common.v1 import limits_pb2

Headers = list[tuple[bytes, bytes]]


def limit_headers(limits: limits_pb2.LimitsSnapshot) -> Headers:
    """The six headers."""
    requests, tokens = limits.requests, limits.tokens
    return [
        (b"x-ratelimit-limit-requests", b"%d" % requests.limit),
        (b"x-ratelimit-limit-tokens", b"%d" % tokens.limit),
        (b"x-ratelimit-remaining-requests", b"%d" % requests.remaining),
        (b"x-ratelimit-remaining-tokens", b"%d" % tokens.remaining),
        (b"x-ratelimit-reset-requests", go_duration(requests.reset)),
        (b"x-ratelimit-reset-tokens", go_duration(tokens.reset)),
    ]


def go_duration(span: Duration) -> bytes:
    """`12ms`, `1s`, `1m12.5s`, `6m0s`: whole milliseconds, rounded up, as Go prints them."""
    total_ms = span.seconds * 1000 - (-span.nanos // 1_000_000)
    if total_ms <= 0:
        return b"0s"
    if total_ms < 1000:
        return b"%dms" % total_ms
    whole_s, ms = divmod(total_ms, 1000)
    fraction = (b".%03d" % ms).rstrip(b"0") if ms else b""
    minutes, seconds = divmod(whole_s, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return b"%dh%dm%d%bs" % (hours, minutes, seconds, fraction)
    if minutes:
        return b"%dm%d%bs" % (minutes, seconds, fraction)
    return b"%d%bs" % (seconds, fraction)
