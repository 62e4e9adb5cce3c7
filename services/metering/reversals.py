"""Use case: money goes back, and what was wrong is corrected; both once per idempotency key, by transfers of their own.

Owns the order of these steps inside one transaction and their bounds; refuses to know protobuf, SQL and providers.
"""

from dataclasses import dataclass
from typing import ClassVar

from services.metering.granting import Granted, check_room, expire_due, keep
from services.metering.ledger import (
    CHARGE_CORRECTION,
    CREDIT_CORRECTIONS,
    PAYMENTS,
    REFUND_CORRECTION,
    REFUND_RULE,
    CreditKind,
    Transfer,
    apply_reversal,
    customer_account,
)
from services.metering.low_balance import note_crossings
from services.metering.ports import GrantRecord, LedgerTransaction
from services.metering.usage import Moment
from services.runtime.errors import AlreadyExistsError, FieldViolation, InvalidRequestError, NotFoundError

_CORRECTION_OF = {kind.rule: rule for rule, kind in CREDIT_CORRECTIONS.items()} | {REFUND_RULE: REFUND_CORRECTION}


@dataclass(frozen=True, slots=True)
class Refund:
    """Purchased money to pay back; parsed, so the amount is above zero."""

    account_id: str
    idempotency_key: str
    amount_nano_usd: int
    receipt: str
    kind: ClassVar[str] = "payback"
    expires_at_us: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class Correction:
    """An entry to take back. An amount of 0 is all that is left of it."""

    account_id: str
    idempotency_key: str
    entry_id: str
    amount_nano_usd: int
    kind: ClassVar[str] = "correction"
    expires_at_us: ClassVar[None] = None


def refund(transaction: LedgerTransaction, request: Refund, moment: Moment) -> Granted:
    """Takes purchased and unspent money off an account, once per (account, key)."""
    record = _known(transaction, request)
    if record is None:
        customer = transaction.customer(request.account_id)
        before_nano_usd = customer.balance_nano_usd
        expire_due(transaction, customer, moment.now_us, moment.new_id)
        if request.amount_nano_usd > customer.refundable_nano_usd:
            raise _invalid("amount_nano_usd", f"is above {customer.refundable_nano_usd}, what is purchased and unspent")
        own = customer_account(request.account_id)
        sides = own, PAYMENTS
        transfer = _transfer(sides, request.amount_nano_usd, REFUND_RULE, request.receipt, moment)
        apply_reversal(customer, transfer)
        note_crossings(transaction, customer, before_nano_usd, moment.low_balance, moment.now_us)
        record = keep(transaction, customer, transfer, request)
    elif record.transfer.amount_nano_usd != request.amount_nano_usd:
        raise AlreadyExistsError("this idempotency key was used for another refund")
    return Granted(record, transaction.notice_mark(request.account_id))


def correct(transaction: LedgerTransaction, request: Correction, moment: Moment) -> Granted:
    """Takes (a part of) an entry back, once per (account, key), and never more than there was."""
    record = _known(transaction, request)
    if record is None:
        record = _correct_first(transaction, request, moment)
    elif not _is_same(record, request):
        raise AlreadyExistsError("this idempotency key was used for another correction")
    return Granted(record, transaction.notice_mark(request.account_id))


def _known(transaction: LedgerTransaction, request: Refund | Correction) -> GrantRecord | None:
    record = transaction.grant(request.account_id, request.idempotency_key)
    if record is not None and record.kind != request.kind:
        raise AlreadyExistsError("this idempotency key was used for something else")
    return record


def _is_same(record: GrantRecord, request: Correction) -> bool:
    known = record.transfer
    return known.reference == request.entry_id and request.amount_nano_usd in {0, known.amount_nano_usd}


def _correct_first(transaction: LedgerTransaction, request: Correction, moment: Moment) -> GrantRecord:
    wrong = transaction.transfer_of(request.entry_id, request.account_id)
    if wrong is None:
        raise NotFoundError("the account has no such entry")
    rule = CHARGE_CORRECTION if wrong.call_id is not None else _CORRECTION_OF.get(wrong.rule)
    if rule is None:
        raise _invalid("entry_id", f"is a {wrong.rule}, which cannot be corrected")
    customer = transaction.customer(request.account_id)
    before_nano_usd = customer.balance_nano_usd
    expire_due(transaction, customer, moment.now_us, moment.new_id)
    left = wrong.amount_nano_usd - transaction.taken_back_nano_usd(wrong.transfer_id)
    amount = request.amount_nano_usd or left
    if not 0 < amount <= left:
        raise _invalid("amount_nano_usd", f"is above {left}, what is left of the entry")
    if CREDIT_CORRECTIONS.get(rule) is CreditKind.PURCHASE and amount > customer.lifetime_paid_nano_usd:
        raise _invalid("amount_nano_usd", "is above what was purchased and not paid back: correct the refund first")
    transfer = _transfer((wrong.credit, wrong.debit), amount, rule, wrong.transfer_id, moment)
    if transfer.credit == customer_account(request.account_id):
        check_room(customer, amount)
    apply_reversal(customer, transfer)
    note_crossings(transaction, customer, before_nano_usd, moment.low_balance, moment.now_us)
    return keep(transaction, customer, transfer, request)


def _transfer(sides: tuple[str, str], amount_nano_usd: int, rule: str, reference: str, moment: Moment) -> Transfer:
    return Transfer(moment.new_id(), *sides, amount_nano_usd, None, rule, "", reference, moment.now_us)


def _invalid(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field} {description}", violations=[FieldViolation(field, description)])
