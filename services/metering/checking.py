"""Use case: recompute everything that can be recomputed, and list every difference.

Owns what a violation is; refuses to repair anything.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from services.metering import charging
from services.metering.charging import Charge, Flag
from services.metering.ledger import Transfer, customer_account, replay, revenue_account
from services.metering.ports import AuditedCall, CustomerRow, LedgerSnapshot
from services.metering.pricing import PriceBook

MAX_VIOLATIONS = 1_000


class Violation(NamedTuple):
    """A difference: the broken rule, what it is about, expected and found."""

    rule: str
    resource_id: str
    detail: str


class CheckReport(NamedTuple):
    """What was read and what was wrong with it."""

    checked_transfers: int
    checked_accounts: int
    checked_usage_events: int
    violations: tuple[Violation, ...]


class _Counts:
    def __init__(self) -> None:
        self.accounts = 0
        self.usage_events = 0


def check(snapshot: LedgerSnapshot, account_id: str) -> CheckReport:
    """Checks one account, or everything when `account_id` is empty."""
    counts = _Counts()
    violations = tuple(islice(_all_violations(snapshot, account_id, counts), MAX_VIOLATIONS))
    return CheckReport(snapshot.transfer_count(account_id), counts.accounts, counts.usage_events, violations)


def _all_violations(snapshot: LedgerSnapshot, account_id: str, counts: _Counts) -> Iterator[Violation]:
    yield from _sums(snapshot, account_id)
    yield from _balances(snapshot, account_id)
    for customer in snapshot.customers(account_id):
        counts.accounts += 1
        yield from _customer(snapshot, customer)
    books = snapshot.price_books()
    for call in snapshot.calls(account_id):
        counts.usage_events += 1
        yield from _call(call, books)
    for transfer in snapshot.postings_without_usage(account_id):
        yield Violation("posting_without_usage", transfer.transfer_id, f"no usage event of call {transfer.call_id}")
    for call_id, times in snapshot.double_postings(account_id):
        yield Violation("double_posting", call_id, f"expected once, found {times} times")
    for transfer_id in snapshot.unexplained_grants(account_id):
        yield Violation("balance_differs", transfer_id, "a grant's transfer and its record do not belong together")
    yield from _outbox(snapshot, account_id)


def _sums(snapshot: LedgerSnapshot, account_id: str) -> Iterator[Violation]:
    for transfer in snapshot.impossible_transfers(account_id):
        yield Violation("sum_not_zero", transfer.transfer_id, "its amount is not above zero, or its sides are the same")
    if not account_id:
        total = snapshot.balance_total()
        if total != 0:
            yield Violation("sum_not_zero", "", f"all balances together: expected 0, found {total}")


def _balances(snapshot: LedgerSnapshot, account_id: str) -> Iterator[Violation]:
    """Every stored balance against the sum of its transfers. One account alone says nothing of its counterparts."""
    for account, expected, found in snapshot.differing_balances(account_id):
        yield Violation("balance_differs", account, f"expected {expected}, found {found}")


def _customer(snapshot: LedgerSnapshot, stored: CustomerRow) -> Iterator[Violation]:
    """What a customer's projection says besides the balance, against a replay of its transfers."""
    account_id = stored.account_id
    replayed = replay(account_id, snapshot.transfers(account_id), snapshot.promotion_terms(account_id))
    left = {each.grant_id: each.remaining_nano_usd for each in replayed.promotions}
    for name, expected, found in (
        ("lifetime paid", replayed.lifetime_paid_nano_usd, stored.lifetime_paid_nano_usd),
        ("promotional part", replayed.promotional_nano_usd, stored.promotional_nano_usd),
        ("left of promotions", left, snapshot.remaining_promotions(account_id)),
    ):
        if expected != found:
            yield Violation("balance_differs", account_id, f"{name}: expected {expected}, found {found}")


def _call(call: AuditedCall, books: Mapping[str, PriceBook]) -> Iterator[Violation]:
    """A call's record against the charge rule, its transfer and its void marker."""
    event, found = call.record.event, call.record.charge
    if call.is_marked_void != (Flag.LATE in found.flags):
        detail = "marked void and posted without the flag `late`" if call.is_marked_void else "`late` without a marker"
        yield Violation("void_and_posted", event.call_id, detail)
    expected = _recomputed(call, books)
    if isinstance(expected, str):
        yield Violation("charge_differs", event.call_id, expected)
    elif expected != found:
        yield Violation("charge_differs", event.call_id, f"expected {_text(expected)}, found {_text(found)}")
    if call.transfer is None:
        if found.nano_usd > 0:
            yield Violation("usage_without_posting", event.call_id, f"no transfer of {found.nano_usd} nano-USD")
    elif _posted(call.transfer) != _to_post(call):
        detail = f"its transfer: expected {_to_post(call)}, found {_posted(call.transfer)}"
        yield Violation("charge_differs", event.call_id, detail)


def _recomputed(call: AuditedCall, books: Mapping[str, PriceBook]) -> Charge | str:
    """The charge by the rule, or why there is none."""
    event = call.record.event
    price = books.get(event.price_book_version, {}).get(event.profile)
    if price is None:
        return "its price is not on record"
    try:
        return charging.charge(event, price, is_late=call.is_marked_void)
    except (charging.UnchargeableError, KeyError) as error:
        return f"cannot be charged: {error}"


def _to_post(call: AuditedCall) -> tuple[str, str, int, str, str, int]:
    event, charge = call.record.event, call.record.charge
    assert call.transfer is not None
    attempt = event.attempt if call.transfer.attempt else 0  # an entry of an early release names none
    sides = customer_account(event.account_id), revenue_account(event.profile)
    return (*sides, charge.nano_usd, charge.rule, ",".join(charge.flags), attempt)


def _posted(transfer: Transfer) -> tuple[str, str, int, str, str, int]:
    sides = transfer.debit, transfer.credit
    return *sides, transfer.amount_nano_usd, transfer.rule, transfer.flags, transfer.attempt


def _text(charge: Charge) -> str:
    counts = {name: count for name, count in charge.usage._asdict().items() if count is not None}
    return f"{charge.rule} {charge.nano_usd} {counts} {list(charge.flags)}"


def _outbox(snapshot: LedgerSnapshot, account_id: str) -> Iterator[Violation]:
    """auth-and-limits has heard of, or will hear of, the newest change of every account."""
    for customer in snapshot.customers(account_id):
        if customer.announced_seq != customer.seq:
            detail = f"expected seq {customer.seq}, found {customer.announced_seq}"
            yield Violation("outbox_behind", customer.account_id, detail)
    for about, expected, found in snapshot.false_notices(account_id):
        yield Violation("outbox_behind", about, f"newest change: expected {expected}, found {found}")
