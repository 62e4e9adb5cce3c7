"""A customer's projection: promotions burn first, debts eat promotions, a replay gives the same.

Owns ledger.py's facts; refuses to touch a store.
"""

from hypothesis import given
from hypothesis import strategies as st

from services.metering.ledger import (
    EXPIRY_RULE,
    CreditKind,
    Customer,
    PromotionTerms,
    Transfer,
    customer_account,
    replay,
)


def left(customer: Customer) -> dict[str, int]:
    return {promotion.grant_id: promotion.remaining_nano_usd for promotion in customer.promotions}


def a_customer_with_promotions() -> Customer:
    customer = Customer("a")
    customer.receive(CreditKind.PURCHASE, 100)
    customer.receive_promotion("never", 10, None)
    customer.receive_promotion("late", 10, 2_000)
    customer.receive_promotion("early", 10, 1_000)
    return customer


def test_promotions_burn_first_and_the_earliest_expiry_before_the_others() -> None:
    customer = a_customer_with_promotions()
    seen = []
    for _ in range(4):
        customer.pay(8)
        seen.append((customer.balance_nano_usd, left(customer)))

    assert seen == [
        (122, {"early": 2, "late": 10, "never": 10}),
        (114, {"late": 4, "never": 10}),
        (106, {"never": 6}),
        (98, {}),
    ]


def test_only_purchases_count_as_paid() -> None:
    customer = a_customer_with_promotions()
    customer.receive(CreditKind.REFUND, 50)

    assert (
        customer.balance_nano_usd,
        customer.lifetime_paid_nano_usd,
        customer.promotional_nano_usd,
    ) == (180, 100, 30)


def test_a_debt_eats_a_new_promotion_at_once() -> None:
    customer = Customer("a")
    customer.pay(7)
    customer.receive_promotion("p", 10, 1_000)
    after_grant = (customer.balance_nano_usd, left(customer))
    (promotion,) = customer.due(1_000)
    customer.expire(promotion, promotion.remaining_nano_usd)

    assert (after_grant, customer.balance_nano_usd) == ((3, {"p": 3}), 0)


def test_a_promotion_is_due_at_its_expiry_and_not_a_microsecond_before() -> None:
    customer = a_customer_with_promotions()

    assert (
        [each.grant_id for each in customer.due(999)],
        [each.grant_id for each in customer.due(1_000)],
    ) == ([], ["early"])


amounts = st.integers(min_value=1, max_value=50)
steps = st.lists(
    st.tuples(st.just("pay"), amounts)
    | st.tuples(st.just("buy"), amounts)
    | st.tuples(st.just("promote"), amounts, st.none() | st.integers(1, 100))
    | st.tuples(st.just("expire"), st.integers(1, 100))
)


@given(steps)
def test_a_replay_of_the_transfers_gives_the_same_customer(journey: list[tuple[object, ...]]) -> None:
    customer = Customer("a")
    own = customer_account("a")
    transfers: list[Transfer] = []
    terms: list[PromotionTerms] = []

    def post(debit: str, credit: str, amount: int, rule: str, reference: str | None = None) -> str:
        transfer_id = f"t{len(transfers)}"
        transfers.append(Transfer(transfer_id, debit, credit, amount, None, rule, "", reference, 0))
        return transfer_id

    for step in journey:
        match step:
            case ("pay", int(amount)):
                customer.pay(amount)
                post(own, "revenue:p", amount, "complete")
            case ("buy", int(amount)):
                customer.receive(CreditKind.PURCHASE, amount)
                post("payments", own, amount, "grant.purchase")
            case ("promote", int(amount), expires_at):
                assert expires_at is None or isinstance(expires_at, int)
                grant_id = post("promotions", own, amount, "grant.promotion")
                terms.append(PromotionTerms(grant_id, expires_at))
                customer.receive_promotion(grant_id, amount, expires_at)
            case ("expire", int(now)):
                for promotion in customer.due(now):
                    amount_left = promotion.remaining_nano_usd
                    customer.expire(promotion, amount_left)
                    post(own, "promotions", amount_left, EXPIRY_RULE, promotion.grant_id)
        assert 0 <= customer.promotional_nano_usd <= max(0, customer.balance_nano_usd)

    again = replay("a", transfers, terms)

    assert (customer.balance_nano_usd, customer.lifetime_paid_nano_usd, left(customer)) == (
        again.balance_nano_usd,
        again.lifetime_paid_nano_usd,
        left(again),
    )
