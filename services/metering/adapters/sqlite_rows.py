"""How ledger values become rows and back.

Owns column order; refuses to run a statement.
"""

from typing import Any

from services.metering.adapters.sqlite_schema import USAGE_CLASSES
from services.metering.charging import Charge, UsageEvent
from services.metering.ledger import Transfer
from services.metering.ports import PostedCall, UsageRecord
from services.metering.pricing import TokenUsage

Row = tuple[Any, ...]


def _classes(prefix: str) -> str:
    return ", ".join(f"{prefix}_{name}" for name in USAGE_CLASSES)


CHARGED_COLUMNS = _classes("charged")
_USAGE_COLUMNS = (
    "call_id, account_id, key_id, application, operation, profile, requested_model, upstream, attempt, "
    f"price_book_version, ending, {_classes('reported')}, {_classes('delivered')}, upstream_accepted, held_nano_usd, "
    f"started_at_us, ended_at_us, rule, {CHARGED_COLUMNS}, charged_nano_usd, flags, recorded_at_us"
)
TRANSFER_COLUMNS = "transfer_id, debit, credit, amount_nano_usd, call_id, rule, flags, reference, posted_at_us, attempt"
_USAGE_WIDTH = _USAGE_COLUMNS.count(",") + 1
_TRANSFER_WIDTH = len(Transfer._fields)

INSERT_USAGE = f"INSERT INTO usage_events ({_USAGE_COLUMNS}) VALUES ({', '.join('?' * _USAGE_WIDTH)})"  # noqa: S608
INSERT_TRANSFER = f"INSERT INTO transfers ({TRANSFER_COLUMNS}) VALUES ({', '.join('?' * _TRANSFER_WIDTH)})"  # noqa: S608
SELECT_USAGE = f"SELECT id, {_USAGE_COLUMNS} FROM usage_events"  # noqa: S608
SELECT_TRANSFER = f"SELECT id, {TRANSFER_COLUMNS} FROM transfers"  # noqa: S608
SELECT_POSTED_AMONG = (
    f"SELECT call_id, rule, charged_nano_usd, account_id, {CHARGED_COLUMNS} FROM usage_events"  # noqa: S608
    " WHERE call_id IN (SELECT value FROM json_each(?))"
)


def usage_row(event: UsageEvent, charge: Charge, now_us: int) -> Row:
    """The values of INSERT_USAGE."""
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


def usage_record(row: Row) -> UsageRecord:
    """A row of SELECT_USAGE."""
    reported, delivered, charged = TokenUsage(*row[12:19]), TokenUsage(*row[19:26]), TokenUsage(*row[31:38])
    upstream_accepted, held, started, ended, rule = row[26:31]
    event = UsageEvent._make((*row[1:12], reported, delivered, bool(upstream_accepted), held, started, ended))
    return UsageRecord(row[0], event, Charge(rule, charged, row[38], flags_of(row[39])), row[40])


def flags_of(text: str) -> tuple[str, ...]:
    """Flags from their stored form."""
    return tuple(text.split(",")) if text else ()


def posted_call(row: Row) -> PostedCall:
    """A row of SELECT_POSTED_AMONG."""
    return PostedCall(row[0], row[1], row[2], TokenUsage(*row[4:]), row[3])


def transfer(row: Row) -> Transfer:
    """A row of SELECT_TRANSFER, without its id."""
    return Transfer(*row[1:])
