"""A plan file is read whole or refused with its place and rule.

Owns the table of broken files; refuses to test what the plans then mean.
"""

from pathlib import Path

import pytest

from services.auth_and_limits.plans import PACKAGED_PLANS, PlanFileError, load_plans
from services.auth_and_limits.tiers import Ceilings, Plan, PlanBook, Tier

TIER = "{name: a, from_paid_usd: 0, requests_per_minute: 1, tokens_per_minute: 2, concurrent_calls: 3}"
GOOD = f"default_plan: p\nplans: {{p: {{subscription: false, tiers: [{TIER}]}}}}\n"


def test_the_packaged_plans_are_good() -> None:
    assert load_plans(PACKAGED_PLANS).default_plan == "pay_as_you_go"


def test_a_file_becomes_frozen_values(tmp_path: Path) -> None:
    path = tmp_path / "plans.yaml"
    path.write_text(GOOD)

    plan = Plan("p", False, (Tier(0, Ceilings(1, 2, 3, "a")),))

    assert load_plans(path) == PlanBook("p", {"p": plan})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param("default_plan: p", "default_plan: q", "default_plan: must be one of p", id="unknown default"),
        pytest.param("default_plan: p\n", "", "the file: default_plan is missing", id="no default"),
        pytest.param("subscription: false, ", "", "plans.p: subscription is missing", id="no subscription"),
        pytest.param(
            "subscription: false", "subscription: 0", "plans.p.subscription: must be true or", id="not a bool"
        ),
        pytest.param(
            "from_paid_usd: 0", "from_paid_usd: 5", "plans.p.tiers[0]: from_paid_usd of the", id="no zero tier"
        ),
        pytest.param(
            "minute: 1,", "minute: 1.5,", "tiers[0].requests_per_minute: must be a whole number", id="a float"
        ),
        pytest.param("minute: 2,", "minute: 0,", "plans.p.tiers[0].tokens_per_minute: must be a whole", id="zero"),
        pytest.param("minute: 2,", "minute: 150000001,", "must be a whole number of 1..150000000", id="too large"),
        pytest.param("concurrent_calls: 3", "calls: 3", "plans.p.tiers[0]: unknown field 'calls'", id="unknown field"),
        pytest.param("name: a", "name: ''", "plans.p.tiers[0].name: must be a text", id="empty name"),
        pytest.param(f"[{TIER}]", "[]", "plans.p.tiers: must be a list with at least one item", id="no tiers"),
        pytest.param(
            f"[{TIER}]", f"[{TIER}, {TIER}]", "plans.p.tiers[1]: from_paid_usd must be higher", id="not rising"
        ),
        pytest.param(GOOD, "default_plan: p\nplans: {}", "plans: must hold at least one plan", id="no plans"),
        pytest.param(GOOD, "[1, 2]", "the file: must be a mapping", id="a list"),
        pytest.param(GOOD, "a: [", "cannot be read as YAML", id="not YAML"),
        pytest.param("{p: {", "{1: {", "plans: must be a mapping with names", id="a number for a name"),
    ],
)
def test_a_broken_file_is_refused_with_its_place_and_rule(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    path = tmp_path / "plans.yaml"
    path.write_text(GOOD.replace(old, new))

    with pytest.raises(PlanFileError) as refused:
        load_plans(path)

    assert str(path) in str(refused.value)
    assert message in str(refused.value)


def test_two_tiers_may_not_share_a_name(tmp_path: Path) -> None:
    path = tmp_path / "plans.yaml"
    path.write_text(GOOD.replace(TIER, TIER + ", " + TIER.replace("from_paid_usd: 0", "from_paid_usd: 1")))

    with pytest.raises(PlanFileError, match=r"plans\.p: two tiers have the same name"):
        load_plans(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanFileError, match=r"missing\.yaml"):
        load_plans(tmp_path / "missing.yaml")
