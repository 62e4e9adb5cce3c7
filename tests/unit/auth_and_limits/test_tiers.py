"""Ceilings follow plan and lifetime spend by themselves.

Owns the proof of `tiers` and of the packaged plans; refuses files but that one.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.auth_and_limits.plans import PACKAGED_PLANS, load_plans
from services.auth_and_limits.tiers import (
    NO_OVERRIDES,
    Ceilings,
    Overrides,
    Plan,
    PlanBook,
    Tier,
    ceilings_of,
    may_make_keys,
)

USD = 1_000_000_000
PLAN = Plan("p", False, (Tier(0, Ceilings(1, 10, 100, "low")), Tier(25 * USD, Ceilings(2, 20, 200, "high"))))


@pytest.mark.parametrize(
    ("paid", "tier"),
    [
        pytest.param(0, "low", id="nothing paid"),
        pytest.param(25 * USD - 1, "low", id="a nano-dollar short"),
        pytest.param(25 * USD, "high", id="exactly there"),
        pytest.param(9_000 * USD, "high", id="far beyond the last tier"),
    ],
)
def test_spend_moves_the_tier(paid: int, tier: str) -> None:
    assert ceilings_of(PLAN, paid, NO_OVERRIDES).tier == tier


def test_ceilings_set_by_hand_win_one_by_one() -> None:
    assert ceilings_of(PLAN, 0, Overrides(tokens_per_minute=7)) == Ceilings(1, 7, 100, "low")


@given(paid=st.integers(0, 10_000 * USD), more=st.integers(0, 10_000 * USD))
def test_paying_more_never_lowers_a_packaged_ceiling(paid: int, more: int) -> None:
    for plan in load_plans(PACKAGED_PLANS).plans.values():
        before, after = ceilings_of(plan, paid, NO_OVERRIDES), ceilings_of(plan, paid + more, NO_OVERRIDES)
        assert before.requests_per_minute <= after.requests_per_minute
        assert before.tokens_per_minute <= after.tokens_per_minute
        assert before.concurrent_calls <= after.concurrent_calls


def test_a_plan_that_left_the_book_counts_as_the_default_one() -> None:
    assert PlanBook("p", {"p": PLAN}).plan("gone") is PLAN


@pytest.mark.parametrize(
    ("subscription", "paid", "expected"),
    [
        pytest.param(False, 25 * USD - 1, False, id="neither"),
        pytest.param(False, 25 * USD, True, id="$25 of purchases"),
        pytest.param(True, 0, True, id="a subscription"),
    ],
)
def test_keys_are_unlocked_by_purchases_or_a_subscription(subscription: bool, paid: int, expected: bool) -> None:
    assert may_make_keys(Plan("p", subscription, PLAN.tiers), paid) is expected
