"""Whatever is bought, given, spent, refunded and corrected, in any order: the bounds hold, the transfers tell.

Owns the rules of refunds and corrections over sequences; refuses to test stores.
"""

import contextlib
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.metering import granting, reversals
from services.metering.granting import Credit
from services.metering.ledger import (
    CreditKind,
    Customer,
    PromotionTerms,
    Transfer,
    customer_account,
    replay,
    revenue_account,
)
from services.metering.low_balance import note_crossings
from services.metering.ports import BalanceEvent, GrantRecord
from services.metering.reversals import Correction, Refund
from services.metering.usage import Moment
from services.runtime.errors import InvalidRequestError

OWN = customer_account("a")


class MemoryTransaction:
    """As much of a transaction as these use cases need, kept in lists."""

    def __init__(self) -> None:
        self.state = Customer("a")
        self.transfers: list[Transfer] = []
        self.grants: dict[str, GrantRecord] = {}
        self.events: list[BalanceEvent] = []

    def customer(self, account_id: str) -> Customer:
        return self.state

    def add_transfer(self, transfer: Transfer, account_id: str) -> None:
        self.transfers.append(transfer)

    def grant(self, account_id: str, idempotency_key: str) -> GrantRecord | None:
        return self.grants.get(idempotency_key)

    def add_grant(self, record: GrantRecord) -> None:
        self.grants[record.idempotency_key] = record

    def transfer_of(self, transfer_id: str, account_id: str) -> Transfer | None:
        return next((each for each in self.transfers if each.transfer_id == transfer_id), None)

    def taken_back_nano_usd(self, transfer_id: str) -> int:
        return sum(each.amount_nano_usd for each in self.transfers if each.reference == transfer_id)

    def add_balance_event(self, event: BalanceEvent) -> None:
        self.events.append(event)

    def notice_mark(self, account_id: str) -> int:
        return 0


amounts = st.integers(1, 30)
steps = st.lists(
    st.tuples(st.just("grant"), amounts, st.sampled_from(CreditKind), st.sampled_from([None, 3, 10, 40]))
    | st.tuples(st.just("spend"), amounts)
    | st.tuples(st.just("refund"), amounts)
    | st.tuples(st.just("correct"), st.integers(0, 30), st.integers(0, 40)),
    max_size=40,
)
THRESHOLDS = (20, 5, 0)


class Story:
    """Runs steps, one per unit of time."""

    def __init__(self) -> None:
        self.transaction: Any = MemoryTransaction()
        ids = count()
        self._new_id: Callable[[], str] = lambda: f"{next(ids):05}"
        self._keys = count()
        self.was_refused = False

    def run(self, step: tuple[Any, ...], now: int) -> None:
        name, *values = step
        self.was_refused = True
        with contextlib.suppress(InvalidRequestError):  # a store undoes what came before it
            getattr(self, name)(Moment(now, self._new_id, THRESHOLDS), *values)
            self.was_refused = False

    def key(self) -> str:
        return str(next(self._keys))

    def grant(self, moment: Moment, amount: int, kind: CreditKind, lives: int | None) -> None:
        expires = moment.now_us + lives if lives and kind is CreditKind.PROMOTION else None
        credit = Credit("a", self.key(), amount, kind, expires)
        granting.grant(self.transaction, credit, *moment)

    def spend(self, moment: Moment, amount: int) -> None:
        customer = self.transaction.customer("a")
        before = customer.balance_nano_usd
        granting.expire_due(self.transaction, customer, moment.now_us, moment.new_id)
        customer.pay(amount)
        note_crossings(self.transaction, customer, before, moment.low_balance, moment.now_us)
        call_id, sides = f"call {self.key()}", (OWN, revenue_account("dragon"))
        charge = Transfer(moment.new_id(), *sides, amount, call_id, "complete", "", None, moment.now_us)
        self.transaction.add_transfer(charge, "a")

    def refund(self, moment: Moment, amount: int) -> None:
        reversals.refund(self.transaction, Refund("a", self.key(), amount, "receipt"), moment)

    def correct(self, moment: Moment, amount: int, which: int) -> None:
        transfers = self.transaction.transfers
        if transfers:
            entry_id = transfers[which % len(transfers)].transfer_id
            reversals.correct(self.transaction, Correction("a", self.key(), entry_id, amount), moment)


@given(steps)
def test_the_bounds_hold_and_a_replay_tells_the_same(story: list[tuple[Any, ...]]) -> None:
    told = Story()
    transaction = told.transaction
    for now, step in enumerate(story, 1):
        told.run(step, now)
        customer = transaction.state
        assert 0 <= customer.promotional_nano_usd <= max(0, customer.balance_nano_usd)
        assert 0 <= customer.refundable_nano_usd <= customer.lifetime_paid_nano_usd
    terms = [PromotionTerms(each.transfer.transfer_id, each.expires_at_us) for each in transaction.grants.values()]
    replayed = replay("a", transaction.transfers, terms)

    assert (replayed.balance_nano_usd, replayed.lifetime_paid_nano_usd, replayed.promotions) == (
        transaction.state.balance_nano_usd,
        transaction.state.lifetime_paid_nano_usd,
        transaction.state.promotions,
    )
    for transfer in transaction.transfers:
        assert transaction.taken_back_nano_usd(transfer.transfer_id) <= transfer.amount_nano_usd


@given(steps)
def test_refunds_never_exceed_purchases(story: list[tuple[Any, ...]]) -> None:
    told = Story()
    for now, step in enumerate(story, 1):
        told.run(step, now)
    paid = {"grant.purchase": 1, "correct.refund": 1, "refund.purchase": -1, "correct.purchase": -1}
    moved = sum(paid.get(each.rule, 0) * each.amount_nano_usd for each in told.transaction.transfers)

    assert moved == told.transaction.state.lifetime_paid_nano_usd >= 0


@given(steps)
def test_every_fall_below_a_threshold_is_one_event(story: list[tuple[Any, ...]]) -> None:
    told = Story()
    for now, step in enumerate(story, 1):
        before, known = told.transaction.state.balance_nano_usd, len(told.transaction.events)
        told.run(step, now)
        after = told.transaction.state.balance_nano_usd
        crossed = [each.threshold_nano_usd for each in told.transaction.events[known:]]
        if not told.was_refused:
            assert crossed == [threshold for threshold in THRESHOLDS if after < threshold <= before]


@pytest.mark.parametrize(
    ("gifts", "spent", "left"),
    [
        pytest.param(
            [(5, None), (5, 30)], 6, [(None, 4)], id="the one that expires is spent before the one that does not"
        ),
        pytest.param([(5, 30), (5, 20)], 6, [(30, 4)], id="the sooner expiry first"),
        pytest.param([(5, 30), (5, 30)], 6, [(30, 4)], id="the older of two that expire together"),
    ],
)
def test_promotions_are_spent_in_one_order(
    gifts: list[tuple[int, int | None]], spent: int, left: list[tuple[int | None, int]]
) -> None:
    told = Story()
    told.grant(Moment(1, told._new_id), 100, CreditKind.PURCHASE, None)
    for amount, lives in gifts:
        told.grant(Moment(1, told._new_id), amount, CreditKind.PROMOTION, lives and lives - 1)
    told.spend(Moment(2, told._new_id), spent)

    customer = told.transaction.state
    assert [(each.expires_at_us, each.remaining_nano_usd) for each in customer.promotions] == left
    assert customer.balance_nano_usd == 110 - spent
