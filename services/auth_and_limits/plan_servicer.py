"""`PlanService`: the plans that are in force, as data.

Owns nothing but encoding them; refuses to decide.
"""

from typing import Any

from mws.admission.v1 import plan_service_pb2 as pb
from mws.admission.v1.plan_service_pb2_grpc import PlanServiceServicer

from services.auth_and_limits import account_translate as translate
from services.auth_and_limits.pages import PageTokens, cut
from services.auth_and_limits.tiers import Plan, PlanBook


class PlanServicer(PlanServiceServicer):
    """The RPC of plans."""

    def __init__(self, plans: PlanBook, tokens: PageTokens) -> None:
        self._plans = plans
        self._tokens = tokens

    async def ListPlans(self, request: pb.ListPlansRequest, context: Any) -> pb.ListPlansResponse:
        page = translate.page_from_pb(self._tokens, request.page_size, request.page_token, "plans")
        names = [name for name in sorted(self._plans.plans) if name > page.after_id]
        found, has_more = cut(names, page.size)
        return pb.ListPlansResponse(
            plans=[self._to_pb(self._plans.plans[name]) for name in found],
            next_page_token=self._tokens.seal(found[-1], "plans") if has_more else "",
        )

    def _to_pb(self, plan: Plan) -> pb.Plan:
        tiers = [
            pb.Tier(
                name=tier.ceilings.tier,
                from_paid_nano_usd=tier.from_paid_nano_usd,
                requests_per_minute=tier.ceilings.requests_per_minute,
                tokens_per_minute=tier.ceilings.tokens_per_minute,
                concurrent_calls=tier.ceilings.concurrent_calls,
            )
            for tier in plan.tiers
        ]
        is_default = plan.name == self._plans.default_plan
        return pb.Plan(name=plan.name, is_subscription=plan.is_subscription, is_default=is_default, tiers=tiers)
