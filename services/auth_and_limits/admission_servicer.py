"""`AdmissionService`: decodes, calls one use case, encodes.

Owns nothing but that; refuses to decide and to catch.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from mws.admission.v1 import admission_service_pb2 as pb
from mws.admission.v1.admission_service_pb2_grpc import AdmissionServiceServicer

from services.auth_and_limits import translate
from services.auth_and_limits.admission import Admission, Credential
from services.auth_and_limits.holds import LARGEST_AMOUNT_NANO_USD
from services.auth_and_limits.records import OutOfCredit
from services.runtime.callers import account_for
from services.runtime.calls import Call, CallerClass, call_of
from services.runtime.errors import DeadlineExceededError, ForeignAccountError


class AdmissionServicer(AdmissionServiceServicer):
    """The RPCs around a hold."""

    def __init__(self, admission: Admission, now_unix_ms: Callable[[], int]) -> None:
        self._admission = admission
        self._now_unix_ms = now_unix_ms

    async def Admit(self, request: pb.AdmitRequest, context: Any) -> pb.AdmitResponse:
        ask = translate.ask_from_pb(request, self._now_unix_ms())
        credential = translate.credential_from_pb(request.credential)
        verdict, payer = await self._admission.admit(ask, credential, request.only_account_id)
        call_of(context).note(call_id=ask.call_id, account_id=payer.account.account_id, verdict=_name_of(verdict))
        return translate.admit_response(verdict, payer, self._admission.lease_until_unix_us)

    async def Extend(self, request: pb.ExtendRequest, context: Any) -> pb.ExtendResponse:
        rules = translate.Rules()
        rules.number("amount_nano_usd", request.amount_nano_usd, LARGEST_AMOUNT_NANO_USD)
        rules.check()
        extended = await self._admission.extend(
            request.call_id, request.run_id, request.amount_nano_usd, request.account_id
        )
        response = pb.ExtendResponse()
        if isinstance(extended, OutOfCredit):
            response.refused.reason = pb.Refusal.REASON_CREDIT
            response.refused.available_nano_usd = extended.available_nano_usd
        else:
            translate.fill_hold(response.extended, extended, self._admission.lease_until_unix_us(extended))
        return response

    async def Renew(self, request: pb.RenewRequest, context: Any) -> pb.RenewResponse:
        rules = translate.Rules()
        rules.length("runner", request.runner, 128, 1)
        rules.check()
        holds = [translate.hold_from_pb(hold, request.runner, index) for index, hold in enumerate(request.holds)]
        return pb.RenewResponse(gone_call_ids=await self._admission.renew(request.runner, holds))

    async def Finish(self, request: pb.FinishRequest, context: Any) -> pb.FinishResponse:
        await self._admission.finish(translate.finished_from_pb(request.holds))
        return pb.FinishResponse()

    async def Void(self, request: pb.VoidRequest, context: Any) -> pb.VoidResponse:
        credential = translate.credential_from_pb(request.credential) if request.HasField("credential") else None
        await self._admission.void(request.call_id, request.run_id, request.account_id, credential)
        return pb.VoidResponse()

    async def GetLimits(self, request: pb.GetLimitsRequest, context: Any) -> pb.GetLimitsResponse:
        call = call_of(context)
        payer, limits = await self._admission.limits(_credential_of(request, call))
        if call.caller.account_id and payer.account.account_id != call.caller.account_id:
            raise ForeignAccountError("the account is not the caller's own")
        call.note(account_id=payer.account.account_id)
        response = pb.GetLimitsResponse(account_id=payer.account.account_id, key_id=payer.key_id)
        translate.fill_limits(response.limits, limits)
        return response

    async def BalanceChanged(self, request: pb.BalanceChangedRequest, context: Any) -> pb.BalanceChangedResponse:
        await self._admission.change_balances(translate.balances_from_pb(request.changes))
        return pb.BalanceChangedResponse()

    async def AwaitOutcome(self, request: pb.AwaitOutcomeRequest, context: Any) -> pb.AwaitOutcomeResponse:
        call = call_of(context)
        rules = translate.Rules()
        rules.id("call_id", request.call_id)
        rules.check()
        only_account_id = account_for(call, request.account_id) or None
        try:
            async with asyncio.timeout_at(call.deadline):
                hold = await self._admission.closed(request.call_id, only_account_id)
        except TimeoutError as error:
            raise DeadlineExceededError("the hold is still open") from error
        response = pb.AwaitOutcomeResponse()
        translate.fill_hold(response.hold, hold, 0)
        return response


def _credential_of(request: pb.GetLimitsRequest, call: Call) -> Credential:
    """A team that shows nothing asks for its own account."""
    if call.caller.caller_class is CallerClass.TEAM and not request.HasField("credential"):
        return Credential(account_id=call.caller.account_id)
    return translate.credential_from_pb(request.credential)


def _name_of(verdict: object) -> str:
    return type(verdict).__name__.lower()
