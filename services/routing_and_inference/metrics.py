"""The figures of this service at `/metrics`.

Owns their names and closed label sets (slugs and upstream names are the catalogue's); takes no label from a caller.
"""

from prometheus_client import Counter, Gauge, Histogram

TOKENS = Counter(
    "mws_gen_ai_client_token_usage_tokens",
    "Tokens of finished calls, as charged: by profile and type (input, output).",
    ["profile", "type"],
)
ENDINGS = Counter("mws_inference_calls", "Admitted calls, by profile and how they ended.", ["profile", "ending"])
REFUSALS = Counter("mws_inference_refusals", "Calls that admission refused, by what was missing.", ["limit"])
FIRST_CONTENT_S = Histogram(
    "mws_gen_ai_server_time_to_first_token_seconds",
    "From the arrival of a call to its first content.",
    ["profile"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
ATTEMPTS = Counter(
    "mws_inference_upstream_attempts",
    "Attempts at upstreams, by outcome: `ok`, `abandoned` or the kind of failure.",
    ["profile", "upstream", "outcome"],
)
SPOOLED = Gauge("mws_inference_spool_events", "Usage events that wait in the spool.")
SPOOL_BYTES = Gauge("mws_inference_spool_bytes", "Bytes of the spool on disk.")
OPEN_HOLDS = Gauge("mws_inference_holds", "Holds that this process renews.")
