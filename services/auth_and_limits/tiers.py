"""Ceilings as a function of the plan and of what the account has paid in its life.

Owns that function and its values; refuses to store a tier anywhere, so nobody ever has to move one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

KEYS_UNLOCK_AT_NANO_USD = 25_000_000_000


class Ceilings(msgspec.Struct, frozen=True):
    """What an account may do."""

    requests_per_minute: int
    tokens_per_minute: int
    concurrent_calls: int
    tier: str


@dataclass(frozen=True, slots=True)
class Overrides:
    """Ceilings set by hand, from 1; None leaves the tier's."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_calls: int | None = None


NO_OVERRIDES = Overrides()


@dataclass(frozen=True, slots=True)
class Tier:
    """Ceilings from a lifetime spend on."""

    from_paid_nano_usd: int
    ceilings: Ceilings


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan: its tiers by rising spend, the first from zero."""

    name: str
    is_subscription: bool
    tiers: tuple[Tier, ...]


@dataclass(frozen=True, slots=True)
class PlanBook:
    """All plans. A plan that is no longer in the book counts as the default one."""

    default_plan: str
    plans: Mapping[str, Plan]

    def plan(self, name: str) -> Plan:
        """The plan of that name, else the default plan."""
        return self.plans.get(name) or self.plans[self.default_plan]


def ceilings_of(plan: Plan, lifetime_paid_nano_usd: int, overrides: Overrides) -> Ceilings:
    """The ceilings in force: those of the highest tier reached, unless somebody set others by hand."""
    ceilings = plan.tiers[0].ceilings
    for tier in plan.tiers:
        if tier.from_paid_nano_usd > lifetime_paid_nano_usd:
            break
        ceilings = tier.ceilings
    if overrides is NO_OVERRIDES:
        return ceilings
    return Ceilings(
        overrides.requests_per_minute or ceilings.requests_per_minute,
        overrides.tokens_per_minute or ceilings.tokens_per_minute,
        overrides.concurrent_calls or ceilings.concurrent_calls,
        ceilings.tier,
    )


def may_make_keys(plan: Plan, lifetime_paid_nano_usd: int) -> bool:
    """Whether an owner may make keys: after $25 of purchases, or with a subscription."""
    return plan.is_subscription or lifetime_paid_nano_usd >= KEYS_UNLOCK_AT_NANO_USD
