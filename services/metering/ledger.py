"""Zero-sum transfers, and the state of a customer as a projection of them.

Owns how a charge, a credit and an expiry change a customer; refuses to store and to read clocks.
"""

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_GRANT_NANO_USD = 9_000_000_000_000_000
MAX_BALANCE_NANO_USD = 9_000_000_000_000_000
EXPIRY_RULE = "expire.promotion"
REFUND_RULE = "refund.purchase"
_CUSTOMER = "customer:"
_CORRECTION = "correct."
_NEVER_US = 1 << 62


class CreditKind(enum.StrEnum):
    """Where a credit comes from."""

    PURCHASE = "purchase"
    PROMOTION = "promotion"
    REFUND = "refund"

    @property
    def source(self) -> str:
        """The ledger account that pays for it."""
        return _SOURCES[self]

    @property
    def rule(self) -> str:
        """The rule on its entry."""
        return f"grant.{self.value}"


PROMOTIONS = "promotions"
_SOURCES = {
    CreditKind.PURCHASE: "payments",
    CreditKind.PROMOTION: PROMOTIONS,
    CreditKind.REFUND: "refunds",
}
PAYMENTS = _SOURCES[CreditKind.PURCHASE]
GRANT_RULES = {kind.rule: kind for kind in CreditKind}

CHARGE_CORRECTION = "correct.charge"
REFUND_CORRECTION = "correct.refund"
CREDIT_CORRECTIONS = {
    "correct.purchase": CreditKind.PURCHASE,
    "correct.promotion": CreditKind.PROMOTION,
    "correct.credit": CreditKind.REFUND,
}


class Transfer(NamedTuple):
    """Money moved from `debit` to `credit`.

    `reference` names the promotion that an expiry ends, the transfer that a correction corrects, or the receipt of a
    payment.
    """

    transfer_id: str
    debit: str
    credit: str
    amount_nano_usd: int  # > 0
    call_id: str | None
    rule: str
    flags: str  # comma-separated
    reference: str | None
    posted_at_us: int
    attempt: int = 0  # of a charge: the one that served


def customer_account(account_id: str) -> str:
    """The ledger account of a customer."""
    return _CUSTOMER + account_id


def revenue_account(profile: str) -> str:
    """The ledger account that the charges of a profile go to."""
    return f"revenue:{profile}"


def is_customer(ledger_account: str) -> bool:
    """Whether a ledger account belongs to a customer."""
    return ledger_account.startswith(_CUSTOMER)


def account_id_of(ledger_account: str) -> str:
    """The account id behind a customer's ledger account."""
    return ledger_account.removeprefix(_CUSTOMER)


@dataclass(slots=True)
class Promotion:
    """A promotional credit and what is left of it."""

    grant_id: str  # the transfer that granted it
    expires_at_us: int | None
    remaining_nano_usd: int

    @property
    def burns_at(self) -> tuple[int, str]:
        """Sorts promotions into the order in which they are spent: earliest expiry first, then oldest."""
        return (_NEVER_US if self.expires_at_us is None else self.expires_at_us, self.grant_id)


@dataclass(slots=True)
class Customer:
    """A customer's projection; the methods apply one transfer each, the money rules live here and nowhere else.

    Holds `sum(remaining promotions) <= max(0, balance)`: a debt eats a new promotion at once, so an expiry can never
    push anybody below zero.
    """

    account_id: str
    balance_nano_usd: int = 0
    lifetime_paid_nano_usd: int = 0
    seq: int = 0
    promotions: list[Promotion] = field(default_factory=list)  # in burning order, each with something left
    touched: dict[str, Promotion] = field(default_factory=dict)  # by grant id: what the store has to write again

    @property
    def promotional_nano_usd(self) -> int:
        """The promotional part of the balance."""
        return sum(promotion.remaining_nano_usd for promotion in self.promotions)

    def pay(self, amount_nano_usd: int) -> None:
        """Applies a charge. Promotions burn first."""
        self.balance_nano_usd -= amount_nano_usd
        for promotion in tuple(self.promotions):
            if amount_nano_usd == 0:
                break
            burnt = min(amount_nano_usd, promotion.remaining_nano_usd)
            amount_nano_usd -= burnt
            self._burn(promotion, burnt)

    def receive(self, kind: CreditKind, amount_nano_usd: int) -> None:
        """Applies a credit that is no promotion, or the balance part of one."""
        self.balance_nano_usd += amount_nano_usd
        if kind is CreditKind.PURCHASE:
            self.lifetime_paid_nano_usd += amount_nano_usd

    def receive_promotion(self, grant_id: str, amount_nano_usd: int, expires_at_us: int | None) -> None:
        """Applies a promotional credit; what covers a debt is spent at once."""
        self.receive(CreditKind.PROMOTION, amount_nano_usd)
        promotion = Promotion(grant_id, expires_at_us, min(amount_nano_usd, max(0, self.balance_nano_usd)))
        self.touched[grant_id] = promotion
        if promotion.remaining_nano_usd > 0:
            self.promotions.append(promotion)
            self.promotions.sort(key=lambda each: each.burns_at)

    @property
    def refundable_nano_usd(self) -> int:
        """What was purchased and is not spent. Promotions are spent first, so the rest of the balance was paid for."""
        return max(0, min(self.lifetime_paid_nano_usd, self.balance_nano_usd - self.promotional_nano_usd))

    def receive_payment(self, amount_nano_usd: int) -> None:
        """Applies a payment (positive), or one that went back (negative): at most what is refundable."""
        self.balance_nano_usd += amount_nano_usd
        self.lifetime_paid_nano_usd += amount_nano_usd

    def give_back(self, amount_nano_usd: int) -> None:
        """Applies the correction of a charge. What it gives back is no promotion."""
        self.balance_nano_usd += amount_nano_usd

    def take_back(self, kind: CreditKind, grant_id: str, amount_nano_usd: int) -> None:
        """Applies the correction of a credit. Of a promotion, what is left of it goes first."""
        self.balance_nano_usd -= amount_nano_usd
        if kind is CreditKind.PURCHASE:
            self.lifetime_paid_nano_usd -= amount_nano_usd
        own = next((each for each in self.promotions if each.grant_id == grant_id), None)
        if own is not None:
            self._burn(own, min(own.remaining_nano_usd, amount_nano_usd))
        for promotion in tuple(self.promotions):  # a debt eats promotions
            excess = self.promotional_nano_usd - max(0, self.balance_nano_usd)
            if excess > 0:
                self._burn(promotion, min(excess, promotion.remaining_nano_usd))

    def due(self, now_us: int) -> list[Promotion]:
        """The promotions that have expired and still have something left."""
        return [each for each in self.promotions if each.expires_at_us is not None and each.expires_at_us <= now_us]

    def expire(self, promotion: Promotion, amount_nano_usd: int) -> None:
        """Applies the end of a promotion of which this much was left."""
        self.balance_nano_usd -= amount_nano_usd
        self._burn(promotion, amount_nano_usd)

    def _burn(self, promotion: Promotion, amount_nano_usd: int) -> None:
        promotion.remaining_nano_usd -= amount_nano_usd
        self.touched[promotion.grant_id] = promotion
        if promotion.remaining_nano_usd <= 0:
            self.promotions.remove(promotion)


class PromotionTerms(NamedTuple):
    """What a promotional grant said about its end."""

    grant_id: str
    expires_at_us: int | None


def replay(account_id: str, transfers: Iterable[Transfer], terms: Iterable[PromotionTerms]) -> Customer:
    """The customer that the transfers, in the order of posting, make. The one definition of the projection."""
    own = customer_account(account_id)
    expiries = {each.grant_id: each.expires_at_us for each in terms}
    customer = Customer(account_id)
    for transfer in transfers:
        kind = GRANT_RULES.get(transfer.rule)
        if kind is CreditKind.PROMOTION:
            expires_at_us = expiries.get(transfer.transfer_id)
            customer.receive_promotion(transfer.transfer_id, transfer.amount_nano_usd, expires_at_us)
        elif kind is not None:
            customer.receive(kind, transfer.amount_nano_usd)
        elif transfer.rule == EXPIRY_RULE:
            _replay_expiry(customer, transfer)
        elif transfer.rule == REFUND_RULE or transfer.rule.startswith(_CORRECTION):
            apply_reversal(customer, transfer)
        else:
            customer.pay(transfer.amount_nano_usd if transfer.debit == own else -transfer.amount_nano_usd)
    return customer


def apply_reversal(customer: Customer, transfer: Transfer) -> None:
    """Applies a refund or a correction."""
    amount, kind = transfer.amount_nano_usd, CREDIT_CORRECTIONS.get(transfer.rule)
    if kind is not None:
        customer.take_back(kind, transfer.reference or "", amount)
    elif transfer.rule == CHARGE_CORRECTION:
        customer.give_back(amount)
    else:
        customer.receive_payment(amount if transfer.rule == REFUND_CORRECTION else -amount)


def _replay_expiry(customer: Customer, transfer: Transfer) -> None:
    ended = next((each for each in customer.promotions if each.grant_id == transfer.reference), None)
    if ended is None:
        customer.balance_nano_usd -= transfer.amount_nano_usd
    else:
        customer.expire(ended, transfer.amount_nano_usd)
