"""What this service counts, beside what the runtime counts for every RPC.

Owns names and closed label sets; refuses labels with ids in them.
"""

from prometheus_client import Counter, Gauge, Histogram

DECISIONS = Counter("mws_admission_decisions_total", "Decisions of Admit.", ["outcome"])
DECISION_OUTCOMES = (
    "admitted",
    "replay",
    "wait",
    "requests",
    "tokens",
    "concurrency",
    "key_requests",
    "key_tokens",
    "credit",
    "failed",
)
COUNT_OF = {outcome: DECISIONS.labels(outcome) for outcome in DECISION_OUTCOMES}

OPEN_HOLDS = Gauge("mws_admission_open_holds", "Holds of calls that run.")
EXPIRED_HOLDS = Counter(
    "mws_admission_expired_holds_total", "Holds whose lease ran out, by what became of them.", ["outcome"]
)
EXPIRED_COUNT_OF = {outcome: EXPIRED_HOLDS.labels(outcome) for outcome in ("posted", "void", "kept")}

JOURNAL_BATCH_ROWS = Histogram(
    "mws_hold_journal_batch_rows", "Holds per commit.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
)
JOURNAL_COMMIT_SECONDS = Histogram(
    "mws_hold_journal_commit_seconds",
    "From handing a batch over until it is durable.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
)
