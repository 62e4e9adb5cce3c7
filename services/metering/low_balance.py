"""Use case: a balance that falls below a threshold is told of, once per crossing.

Owns what a crossing is and how it is announced; refuses to know who reads the announcement.
"""

from collections.abc import Sequence

import structlog

from services.metering import metrics
from services.metering.ledger import Customer
from services.metering.ports import BalanceEvent, LedgerTransaction

_log = structlog.get_logger()
_BATCH = 200


def note_crossings(
    transaction: LedgerTransaction, customer: Customer, before_nano_usd: int, thresholds: Sequence[int], now_us: int
) -> None:
    """Appends an event for each threshold that the balance was at or above, and is below now."""
    balance_nano_usd = customer.balance_nano_usd
    for threshold in thresholds:
        if balance_nano_usd < threshold <= before_nano_usd:
            transaction.add_balance_event(BalanceEvent(customer.account_id, threshold, balance_nano_usd, now_us))


def announce(events: Sequence[BalanceEvent]) -> None:
    """Writes a line for each and counts them. An event may be announced again after a crash: its facts tell."""
    for event in events:
        _log.warning("balance.low", **event._asdict())
        metrics.LOW_BALANCE_EVENTS.inc()


def unannounced(transaction: LedgerTransaction) -> list[tuple[int, BalanceEvent]]:
    """The next events to announce."""
    return transaction.unannounced_balance_events(_BATCH)
