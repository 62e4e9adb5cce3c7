"""How ledger values become rows of PostgreSQL and back.

Owns column order; refuses to run a statement.
"""

from typing import Any

from services.metering.adapters.sqlite_schema import USAGE_CLASSES
from services.metering.charging import Charge, UsageEvent
from services.metering.ledger import Transfer
from services.metering.ports import BalanceNotice, PostedCall, UsageRecord
from services.metering.pricing import TokenUsage

Row = tuple[Any, ...]


def _classes(prefix: str) -> tuple[str, ...]:
    return tuple(f"{prefix}_{name}" for name in USAGE_CLASSES)


CHARGED_COLUMNS = _classes("charged")
USAGE_COLUMNS = (
    *UsageEvent._fields[:11],
    *_classes("reported"),
    *_classes("delivered"),
    *UsageEvent._fields[13:],
    "rule",
    *CHARGED_COLUMNS,
    "charged_nano_usd",
    "flags",
    "recorded_at_us",
)
TRANSFER_COLUMNS = Transfer._fields
_NOTICE_COLUMNS = "id, account_id, seq, balance_nano_usd, lifetime_paid_nano_usd, closed_call_ids"

SELECT_USAGE = f"SELECT id, {', '.join(USAGE_COLUMNS)} FROM usage_events"  # noqa: S608
SELECT_TRANSFER = f"SELECT id, {', '.join(TRANSFER_COLUMNS)} FROM transfers"  # noqa: S608
SELECT_NOTICE = f"SELECT {_NOTICE_COLUMNS} FROM outbox"  # noqa: S608
# The bounds on the id let the server look into the months that the ids are of, and into no others.
SELECT_POSTED_AMONG = (
    f"SELECT call_id, rule, charged_nano_usd, account_id, {', '.join(CHARGED_COLUMNS)} FROM usage_events"  # noqa: S608
    " WHERE call_id = ANY ($1::uuid[]) AND call_id >= $2 AND call_id <= $3"
)


def usage_row(event: UsageEvent, charge: Charge, now_us: int) -> Row:
    """The values of USAGE_COLUMNS."""
    return (
        *event[:11],
        *event.reported,
        *event.delivered,
        *event[13:],
        charge.rule,
        *charge.usage,
        charge.nano_usd,
        ",".join(charge.flags),
        now_us,
    )


def usage_record(row: Any) -> UsageRecord:
    """A row of SELECT_USAGE."""
    reported, delivered, charged = TokenUsage(*row[12:19]), TokenUsage(*row[19:26]), TokenUsage(*row[31:38])
    upstream_accepted, held, started, ended, rule = row[26:31]
    event = UsageEvent._make((*row[1:12], reported, delivered, upstream_accepted, held, started, ended))
    flags = tuple(row[39].split(",")) if row[39] else ()
    return UsageRecord(row[0], event, Charge(rule, charged, row[38], flags), row[40])


def posted_call(row: Any) -> PostedCall:
    """A row of SELECT_POSTED_AMONG."""
    return PostedCall(row[0], row[1], row[2], TokenUsage(*row[4:]), row[3])


def transfer(row: Any) -> Transfer:
    """A row of SELECT_TRANSFER, without its id."""
    return Transfer(*row[1:])


def notice(row: Any) -> BalanceNotice:
    """A row of SELECT_NOTICE."""
    return BalanceNotice._make((*row[:5], tuple(row[5].split(",")) if row[5] else ()))
