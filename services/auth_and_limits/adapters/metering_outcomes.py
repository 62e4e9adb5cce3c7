"""Metering's `ResolveOutcomes` and `ReadBalances` as this service's sources of outcomes and balances.

Owns the translation; refuses to retry: the reaper comes again, and so does a call that was not admitted.
"""

from collections.abc import Mapping, Sequence

import grpc
from mws.metering.v1 import metering_service_pb2 as pb
from mws.metering.v1.metering_service_pb2_grpc import MeteringServiceStub

from services.auth_and_limits.records import Balance, Outcome

_TIMEOUT_S = 2.0
_BALANCES_TIMEOUT_S = 1.5  # a runner waits 2 s for the admission that needs them
_KNOWN = {pb.CallOutcome.KIND_POSTED: True, pb.CallOutcome.KIND_VOID: False}


class MeteringOutcomes:
    """`ports.OutcomeSource` and `ports.BalanceSource` over a channel to metering."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._metering = MeteringServiceStub(channel)

    async def resolve(self, call_ids: Sequence[str]) -> Mapping[str, Outcome]:
        request = pb.ResolveOutcomesRequest(call_ids=call_ids)
        response = await self._metering.ResolveOutcomes(request, timeout=_TIMEOUT_S)
        asked = set(call_ids)
        return {
            outcome.call_id: Outcome(_KNOWN[outcome.kind], outcome.charged_nano_usd)
            for outcome in response.outcomes
            if outcome.kind in _KNOWN and outcome.call_id in asked
        }

    async def balances(self, account_ids: Sequence[str]) -> Sequence[Balance]:
        request = pb.ReadBalancesRequest(account_ids=account_ids)
        response = await self._metering.ReadBalances(request, timeout=_BALANCES_TIMEOUT_S)
        return [
            Balance(each.account_id, each.seq, each.balance_nano_usd, each.lifetime_paid_nano_usd)
            for each in response.balances
        ]
