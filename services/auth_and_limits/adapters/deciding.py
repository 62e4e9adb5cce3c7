"""What stands in the way of a call and what its caller may see of the limits: said once, for every hold store.

Pure: takes nothing.
"""

from collections.abc import Sequence

from services.auth_and_limits.limits import Demand, LimitsView, Reason, binding_view, shortage_of
from services.auth_and_limits.records import Ask, Refused


def refusal_of(ask: Ask, available_nano_usd: int, has_slot: bool, demands: Sequence[Demand]) -> Refused | None:
    """What stands in the way, the least curable first: credit, a ceiling, a slot nobody can foretell, then time."""
    if ask.amount_nano_usd > available_nano_usd:
        return Refused(Reason.CREDIT, view_of(demands), available_nano_usd=available_nano_usd)
    shortage = shortage_of(demands)
    if shortage is not None and shortage.retry_in_us is None:
        return Refused(shortage.reason, view_of(demands), ceiling=shortage.ceiling)
    if not has_slot:
        return Refused(Reason.CONCURRENCY, view_of(demands))
    if shortage is not None:
        return Refused(shortage.reason, view_of(demands), retry_in_us=shortage.retry_in_us)
    return None


def view_of(demands: Sequence[Demand]) -> LimitsView:
    """The buckets as their owner may see them: the account's two, and those of its key where they bind."""
    requests, tokens = demands[0][0], demands[1][0]
    if len(demands) == 2:  # no throttle
        return LimitsView(requests.view(), tokens.view())
    of_key = {reason: bucket for bucket, _, reason in demands[2:]}
    return LimitsView(
        binding_view(requests, of_key.get(Reason.KEY_REQUESTS)), binding_view(tokens, of_key.get(Reason.KEY_TOKENS))
    )
