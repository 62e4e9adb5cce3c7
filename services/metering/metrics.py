"""Metering's own metrics; those of RPCs are the runtime's.

Owns names and labels, all from closed sets; refuses to measure anything itself.
"""

from prometheus_client import Counter, Gauge, Histogram

EVENTS = Counter("mws_metering_events", "Usage events by what became of them.", ["outcome"])
CHARGED_NANO_USD = Counter("mws_metering_charged_nano_usd", "Charged, in nano-dollars.")
COMMIT_SECONDS = Histogram(
    "mws_metering_commit_seconds",
    "From the start of a group of jobs until it is durable.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
)
STORE_FAILURES = Counter("mws_metering_store_failures", "Groups that the store could not commit.")
OUTBOX_BACKLOG = Gauge("mws_metering_outbox_backlog", "Balance changes read from the outbox and not acknowledged yet.")
LOW_BALANCE_EVENTS = Counter("mws_metering_low_balance_events", "Balances that fell below a threshold, as announced.")
