"""Use case: usage is recorded once, charged by the rule and posted; calls without usage become void.

Owns the order of these steps inside one transaction; refuses to know protobuf, SQL and clocks.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from services.metering import charging
from services.metering.answers import Keeping, keep
from services.metering.charging import UsageEvent
from services.metering.granting import expire_due
from services.metering.ledger import MAX_BALANCE_NANO_USD, Transfer, customer_account, revenue_account
from services.metering.low_balance import note_crossings
from services.metering.ports import Footprint, KeptAnswer, LedgerTransaction, PostedCall, Rejection
from services.metering.pricing import NO_USAGE, TokenUsage


class OutcomeKind(enum.IntEnum):
    """What became of an event; the numbers are those of the contract."""

    POSTED = 1
    DEFERRED = 2
    REJECTED = 3


class RecordOutcome(NamedTuple):
    """What became of an event. `charged_nano_usd`, `rule` and `usage` mean something for POSTED only."""

    call_id: str
    kind: OutcomeKind
    charged_nano_usd: int = 0
    rule: str = ""
    usage: TokenUsage = NO_USAGE
    is_repeated: bool = False
    detail: str = ""


class Moment(NamedTuple):
    """When a job runs, and how it names what it appends."""

    now_us: int
    new_id: Callable[[], str]
    low_balance: tuple[int, ...] = ()  # thresholds in nano-USD, the highest first


def record(
    transaction: LedgerTransaction,
    events: Sequence[UsageEvent | Rejection],
    moment: Moment,
    answers: Mapping[str, KeptAnswer] = MappingProxyType({}),
) -> list[RecordOutcome]:
    """Records each event at most once, ever. One outcome per event, in order.

    `answers` are those of calls under an idempotency key, by call id; each is kept if its call is posted.
    """
    call_ids = [event.call_id for event in events]
    posted = transaction.posted_calls(call_ids)
    void = transaction.void_calls(call_ids)
    outcomes: list[RecordOutcome] = []
    for event in events:
        first = posted.get(event.call_id)
        if first is not None and isinstance(event, UsageEvent) and first.account_id != event.account_id:
            outcome = _refuse(transaction, event, "the call is on record for another account", moment.now_us)
        elif first is not None:
            outcome = RecordOutcome(
                event.call_id, OutcomeKind.POSTED, first.charged_nano_usd, first.rule, first.usage, is_repeated=True
            )
        elif isinstance(event, Rejection):
            outcome = _reject(transaction, event, moment.now_us)
        else:
            answer = answers.get(event.call_id) if answers else None
            outcome = _post(transaction, event, moment, answer, is_late=event.call_id in void)
            if outcome.kind is OutcomeKind.POSTED:
                posted[event.call_id] = PostedCall(
                    event.call_id, outcome.rule, outcome.charged_nano_usd, outcome.usage, event.account_id
                )
        outcomes.append(outcome)
    return outcomes


def footprint_of(events: Sequence[UsageEvent | Rejection]) -> Footprint:
    """What recording these events touches."""
    account_ids = {event.account_id for event in events if isinstance(event, UsageEvent)}
    return Footprint(account_ids, [event.call_id for event in events])


def resolve(transaction: LedgerTransaction, call_ids: Sequence[str], now_us: int) -> list[PostedCall | None]:
    """How calls ended, in order: posted, or None for void. A call without a posting is void from now on."""
    posted = transaction.posted_calls(call_ids)
    missing = {call_id for call_id in call_ids if call_id not in posted}
    if missing:
        transaction.add_void_markers(missing, now_us)
    return [posted.get(call_id) for call_id in call_ids]


def _post(
    transaction: LedgerTransaction, event: UsageEvent, moment: Moment, answer: KeptAnswer | None, *, is_late: bool
) -> RecordOutcome:
    book = transaction.price_book(event.price_book_version)
    if book is None:
        detail = "the price book of this event is not registered"
        return RecordOutcome(event.call_id, OutcomeKind.DEFERRED, detail=detail)
    price = book.get(event.profile)
    if price is None:
        return _refuse(transaction, event, "the price book has no price for this profile", moment.now_us)
    try:
        charge = charging.charge(event, price, is_late=is_late)
    except charging.UnchargeableError as error:
        return _refuse(transaction, event, str(error), moment.now_us)
    fault = _too_deep(transaction, event, charge) or _foreign_key(transaction, event, answer, moment.now_us)
    if fault:
        return _refuse(transaction, event, fault, moment.now_us)
    if charge.nano_usd > 0:
        _move(transaction, event, charge, moment)
    transaction.add_usage(event, charge, moment.now_us)
    return RecordOutcome(event.call_id, OutcomeKind.POSTED, charge.nano_usd, charge.rule, charge.usage)


def _too_deep(transaction: LedgerTransaction, event: UsageEvent, charge: charging.Charge) -> str:
    if charge.nano_usd == 0:
        return ""
    left = transaction.customer(event.account_id).balance_nano_usd - charge.nano_usd
    return "the balance would be below any that can be kept" if left < -MAX_BALANCE_NANO_USD else ""


def _foreign_key(transaction: LedgerTransaction, event: UsageEvent, answer: KeptAnswer | None, now_us: int) -> str:
    """Keeps the answer. A key that stands for another call means that the request was run, and charged, before."""
    if answer is None:
        return ""
    holder = keep(transaction, Keeping(event.call_id, event.account_id, answer), now_us)
    return "" if holder == event.call_id else f"its idempotency key stands for the call {holder}"


def _move(transaction: LedgerTransaction, event: UsageEvent, charge: charging.Charge, moment: Moment) -> None:
    customer = transaction.customer(event.account_id)
    before_nano_usd = customer.balance_nano_usd
    if customer.promotions:
        expire_due(transaction, customer, moment.now_us, moment.new_id)
    customer.pay(charge.nano_usd)
    if moment.low_balance and customer.balance_nano_usd < moment.low_balance[0]:
        note_crossings(transaction, customer, before_nano_usd, moment.low_balance, moment.now_us)
    transfer = Transfer(
        moment.new_id(),
        customer_account(event.account_id),
        revenue_account(event.profile),
        charge.nano_usd,
        event.call_id,
        charge.rule,
        ",".join(charge.flags),
        None,
        moment.now_us,
        event.attempt,
    )
    transaction.add_transfer(transfer, event.account_id)


def _refuse(transaction: LedgerTransaction, event: UsageEvent, detail: str, now_us: int) -> RecordOutcome:
    return _reject(transaction, Rejection(event.call_id, detail, charging.event_json(event)), now_us)


def _reject(transaction: LedgerTransaction, rejection: Rejection, now_us: int) -> RecordOutcome:
    is_new = transaction.add_rejection(rejection, now_us)
    return RecordOutcome(rejection.call_id, OutcomeKind.REJECTED, is_repeated=not is_new, detail=rejection.detail)
