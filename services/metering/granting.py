"""Use case: credits are granted once per idempotency key, and promotions end when they expire.

Owns the order of these steps inside one transaction; refuses to know protobuf, SQL and clocks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.metering.ledger import (
    EXPIRY_RULE,
    MAX_BALANCE_NANO_USD,
    PROMOTIONS,
    CreditKind,
    Customer,
    Transfer,
    customer_account,
)
from services.metering.low_balance import note_crossings
from services.metering.ports import GrantRecord, LedgerTransaction
from services.runtime.errors import AlreadyExistsError, FieldViolation, InvalidRequestError


@dataclass(frozen=True, slots=True)
class Credit:
    """A credit to grant; parsed, so the amount is within its bounds and an expiry belongs to a promotion."""

    account_id: str
    idempotency_key: str
    amount_nano_usd: int
    kind: CreditKind
    expires_at_us: int | None


class KeyedRequest(Protocol):
    """What a record under an idempotency key says about its request."""

    @property
    def idempotency_key(self) -> str:
        """The key."""

    @property
    def kind(self) -> str:
        """What was asked for."""

    @property
    def expires_at_us(self) -> int | None:
        """When a promotion ends."""


@dataclass(frozen=True, slots=True)
class Granted:
    """The grant, and the row of the outbox after whose delivery auth-and-limits knows of it."""

    record: GrantRecord
    notice_mark: int


def grant(
    transaction: LedgerTransaction,
    credit: Credit,
    now_us: int,
    new_id: Callable[[], str],
    low_balance: Sequence[int] = (),
    receipt: str | None = None,
) -> Granted:
    """Grants a credit, once per (account, key); a repeat returns the first grant."""
    record = granted_before(transaction, credit)
    if record is None:
        customer = transaction.customer(credit.account_id)
        before_nano_usd = customer.balance_nano_usd
        record = _grant_first(transaction, credit, now_us, new_id, receipt)
        note_crossings(transaction, customer, before_nano_usd, low_balance, now_us)
    return Granted(record, transaction.notice_mark(credit.account_id))


def granted_before(transaction: LedgerTransaction, credit: Credit) -> GrantRecord | None:
    """The first grant under this key, if there is one. Raises AlreadyExistsError if it was for another credit."""
    record = transaction.grant(credit.account_id, credit.idempotency_key)
    if record is None:
        return None
    known = record.transfer.amount_nano_usd, record.kind, record.expires_at_us
    if known != (credit.amount_nano_usd, credit.kind.value, credit.expires_at_us):
        raise AlreadyExistsError("this idempotency key was used for another credit")
    return record


def check_grant(transaction: LedgerTransaction, credit: Credit, now_us: int) -> None:
    """Raises InvalidRequestError for a credit that cannot be granted."""
    check_room(transaction.customer(credit.account_id), credit.amount_nano_usd)
    if credit.expires_at_us is not None and credit.expires_at_us <= now_us:
        raise InvalidRequestError("it has expired", violations=[FieldViolation("expires_at", "is not in the future")])


def check_room(customer: Customer, amount_nano_usd: int) -> None:
    """Raises InvalidRequestError if the balance would get larger than any balance may be."""
    if customer.balance_nano_usd + amount_nano_usd > MAX_BALANCE_NANO_USD:
        detail = f"the balance would exceed {MAX_BALANCE_NANO_USD} nano-USD"
        raise InvalidRequestError(detail, violations=[FieldViolation("amount_nano_usd", detail)])


def _grant_first(
    transaction: LedgerTransaction, credit: Credit, now_us: int, new_id: Callable[[], str], receipt: str | None
) -> GrantRecord:
    check_grant(transaction, credit, now_us)
    customer = transaction.customer(credit.account_id)
    expire_due(transaction, customer, now_us, new_id)
    transfer = Transfer(
        new_id(),
        credit.kind.source,
        customer_account(credit.account_id),
        credit.amount_nano_usd,
        None,
        credit.kind.rule,
        "",
        receipt,
        now_us,
    )
    if credit.kind is CreditKind.PROMOTION:
        customer.receive_promotion(transfer.transfer_id, credit.amount_nano_usd, credit.expires_at_us)
    else:
        customer.receive(credit.kind, credit.amount_nano_usd)
    return keep(transaction, customer, transfer, credit)


def keep(transaction: LedgerTransaction, customer: Customer, transfer: Transfer, request: KeyedRequest) -> GrantRecord:
    """Appends a transfer that was applied to the customer, and its record under the idempotency key."""
    transaction.add_transfer(transfer, customer.account_id)
    record = GrantRecord(
        customer.account_id,
        request.idempotency_key,
        str(request.kind),
        request.expires_at_us,
        customer.balance_nano_usd,
        transfer,
    )
    transaction.add_grant(record)
    return record


def expire_due(transaction: LedgerTransaction, customer: Customer, now_us: int, new_id: Callable[[], str]) -> None:
    """Ends the customer's expired promotions, each with a transfer of what was left."""
    for promotion in customer.due(now_us):
        left = promotion.remaining_nano_usd
        customer.expire(promotion, left)
        transaction.add_transfer(
            Transfer(
                new_id(),
                customer_account(customer.account_id),
                PROMOTIONS,
                left,
                None,
                EXPIRY_RULE,
                "",
                promotion.grant_id,
                now_us,
            ),
            customer.account_id,
        )


def sweep(
    transaction: LedgerTransaction, now_us: int, new_id: Callable[[], str], low_balance: Sequence[int] = ()
) -> int:
    """Ends expired promotions of accounts that nothing else touches. Returns how many accounts it found."""
    account_ids = transaction.accounts_with_due_promotions(now_us, limit=500)
    for account_id in account_ids:
        customer = transaction.customer(account_id)
        before_nano_usd = customer.balance_nano_usd
        expire_due(transaction, customer, now_us, new_id)
        note_crossings(transaction, customer, before_nano_usd, low_balance, now_us)
    return len(account_ids)
