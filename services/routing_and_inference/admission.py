"""Opens calls: who pays, whether the call may run, and what is held for it while it does.

Owns the way to and from `Admit` and `Extend`, and the errors that refusals become; refuses to decide any of it.
"""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec
from mws.admission.v1 import admission_service_pb2 as pb
from mws.common.v1 import limits_pb2
from mws.common.v1.credential_pb2 import Credential
from mws.common.v1.limits_pb2 import LimitsSnapshot

from services.routing_and_inference import metrics
from services.routing_and_inference.adapters.finisher import Finisher
from services.routing_and_inference.adapters.leases import Leases
from services.routing_and_inference.bounding import Bound
from services.routing_and_inference.catalog import Profile
from services.routing_and_inference.current import CurrentCatalogue
from services.runtime.callers import account_for
from services.runtime.calls import Call, CallerClass
from services.runtime.errors import (
    CallerNotAllowedError,
    CreditExhaustedError,
    DeadlineExceededError,
    FieldViolation,
    GatewayError,
    HoldNotOpenError,
    InvalidCredentialError,
    InvalidRequestError,
    MissingCredentialError,
    RateLimitedError,
    ServiceUnavailableError,
)
from services.runtime.ids import new_id, unix_ms_of

if TYPE_CHECKING:
    from mws.admission.v1.admission_service_pb2_grpc import AdmissionServiceAsyncStub

_TIMEOUT_S = 2.0
_RETRY_IN = timedelta(seconds=1)
_CALL_ID_SKEW_MS = 3_600_000
_MAX_IDEMPOTENCY_KEY = 255
_MAX_APPLICATION = 128
_SHA256_BYTES = 32

_LIMITS = {
    pb.Refusal.REASON_REQUESTS: ("requests", "the account's requests per minute are used up"),
    pb.Refusal.REASON_TOKENS: ("tokens", "the account's tokens per minute are used up"),
    pb.Refusal.REASON_CONCURRENCY: ("concurrency", "the account has too many calls running"),
    pb.Refusal.REASON_KEY_REQUESTS: ("key_requests", "the key's requests per minute are used up"),
    pb.Refusal.REASON_KEY_TOKENS: ("key_tokens", "the key's tokens per minute are used up"),
}


class Order(msgspec.Struct, frozen=True, eq=False):
    """A call to open. `max_output_tokens` is the most that makes sense for the profile, for the advice in a refusal."""

    call_id: str
    credential: Credential
    operation: "pb.Operation.ValueType"
    profile: Profile
    bound: Bound
    requested_model: str = ""
    application: str = ""
    idempotency_key: str = ""
    body_sha256: bytes = b""
    max_output_tokens: int = 0


class OpenCall(msgspec.Struct, eq=False):
    """A call that was admitted. `hold` is replaced when it is extended."""

    order: Order
    profile: Profile
    hold: pb.Hold
    limits: limits_pb2.LimitsSnapshot
    price_book_version: str
    started_at_us: int


def check_order(order: Order, now_us: int) -> None:
    """Checks the fields that all calls share. Raises InvalidRequestError."""
    violations = []
    try:
        if abs(unix_ms_of(order.call_id) - now_us // 1_000) > _CALL_ID_SKEW_MS:  # its usage could not be recorded
            violations.append(FieldViolation("call_id", "must have been minted now"))
    except ValueError:
        violations.append(FieldViolation("call_id", "must be a UUIDv7 in its canonical text form"))
    if len(order.idempotency_key) > _MAX_IDEMPOTENCY_KEY:
        violations.append(FieldViolation("idempotency_key", f"at most {_MAX_IDEMPOTENCY_KEY} characters"))
    if order.idempotency_key and len(order.body_sha256) != _SHA256_BYTES:
        violations.append(FieldViolation("body_sha256", f"{_SHA256_BYTES} bytes, required with idempotency_key"))
    if len(order.application) > _MAX_APPLICATION:
        violations.append(FieldViolation("application", f"at most {_MAX_APPLICATION} characters"))
    if violations:
        raise InvalidRequestError(f"{violations[0].field}: {violations[0].description}", violations=violations)


class AnsweredEarlierError(Exception):
    """Another call of the same idempotency key has come to its end: nothing was taken, its answer is to be replayed."""

    def __init__(self, account_id: str, limits: LimitsSnapshot) -> None:
        super().__init__("answered earlier")
        self.account_id = account_id
        self.limits = limits


class Admissions:
    """`runner` is this process's instance id, under which its holds are renewed."""

    def __init__(
        self,
        admission: "AdmissionServiceAsyncStub",
        leases: Leases,
        finisher: Finisher,
        *,
        runner: str,
        current: CurrentCatalogue,
        wall_us: Callable[[], int],
    ) -> None:
        self._admission = admission
        self._leases = leases
        self._finisher = finisher
        self._runner = runner
        self._current = current
        self._wall_us = wall_us

    async def open(self, order: Order, call: Call) -> OpenCall:
        """Asks for a hold. Raises AnsweredEarlierError, and what the contract of `Generate` lists for a refusal."""
        try:
            check_order(order, self._wall_us())
        except InvalidRequestError as error:
            raise await self.at_fault(error, order.credential, call) from error
        request = self._request(order, call)
        response = await self._admit(request)
        while (outcome := response.WhichOneof("outcome")) == "wait":
            await self._await_outcome(response, call)
            response = await self._admit(request)
        profile = order.profile
        call.note(account_id=response.account_id, profile=profile.slug)
        if outcome == "replay":
            raise AnsweredEarlierError(response.account_id, response.limits)
        if outcome == "refused":
            raise _refusal(order, response)
        hold = response.admitted
        self._leases.open(hold)
        return OpenCall(order, profile, hold, response.limits, request.price_book_version, self._wall_us())

    async def at_fault(self, error: GatewayError, credential: Credential, call: Call) -> GatewayError:
        """The error for a request that breaks a rule, with the payer's limits; a credential that is not valid wins."""
        if call.caller.caller_class is CallerClass.TEAM or credential.WhichOneof("kind") is None:
            return error
        try:
            known = await self._admission.GetLimits(pb.GetLimitsRequest(credential=credential), timeout=_TIMEOUT_S)
        except (MissingCredentialError, InvalidCredentialError, CallerNotAllowedError) as refused:
            return refused
        except GatewayError:
            return error  # what is wrong with the request is true whoever pays
        error.details = (*error.details, known.limits)
        return error

    async def extend(self, opened: OpenCall, amount_nano_usd: int) -> bool:
        """Raises what is held to an amount; false: the balance does not cover it. Raises when nobody can tell."""
        request = pb.ExtendRequest(
            call_id=opened.order.call_id,
            run_id=opened.hold.run_id,
            amount_nano_usd=amount_nano_usd,
            account_id=opened.hold.account_id,
        )
        try:
            response = await self._admission.Extend(request, timeout=_TIMEOUT_S)
        except HoldNotOpenError:
            return False  # expired under us: nothing more may be spent on it
        except DeadlineExceededError as error:
            raise ServiceUnavailableError("the balance could not be asked in time", retry_in=_RETRY_IN) from error
        if response.HasField("refused"):
            return False
        opened.hold = response.extended
        self._leases.open(opened.hold)
        return True

    def _request(self, order: Order, call: Call) -> pb.AdmitRequest:
        request = pb.AdmitRequest(
            call_id=order.call_id,
            run_id=new_id(),
            runner=self._runner,
            credential=order.credential,
            operation=order.operation,
            profile=order.profile.slug,
            amount_nano_usd=order.bound.amount_nano_usd,
            rate_tokens=order.bound.rate_tokens,
            price_book_version=self._current.book.version,
            idempotency_key=order.idempotency_key,
            body_sha256=order.body_sha256,
        )
        kind = order.credential.WhichOneof("kind")
        if call.caller.caller_class is CallerClass.TEAM:
            named = order.credential.account_id if kind == "account_id" else ""
            request.only_account_id = account_for(call, named)
            if kind in (None, "account_id"):
                if key_sha256 := call.caller.key_sha256:  # the key's own throttle and its revocation hold here too
                    request.credential.api_key_sha256 = key_sha256
                else:
                    request.credential.account_id = request.only_account_id
        elif kind is None:
            raise MissingCredentialError("the call names nobody who pays")
        return request

    async def _admit(self, request: pb.AdmitRequest) -> pb.AdmitResponse:
        self._finisher.hurry()
        try:
            return await self._admission.Admit(request, timeout=_TIMEOUT_S)
        except DeadlineExceededError as error:
            self._finisher.void(_void_of(request))
            raise ServiceUnavailableError("the call could not be admitted in time", retry_in=_RETRY_IN) from error
        except (ServiceUnavailableError, asyncio.CancelledError):
            # The decision may have been made: release what it may have taken.
            self._finisher.void(_void_of(request))
            raise

    async def _await_outcome(self, response: pb.AdmitResponse, call: Call) -> None:
        now_s = asyncio.get_running_loop().time()
        left_s = call.deadline - now_s if call.deadline is not None else _TIMEOUT_S
        request = pb.AwaitOutcomeRequest(call_id=response.wait.call_id, account_id=response.account_id)
        await self._admission.AwaitOutcome(request, timeout=max(0.001, left_s))


def _void_of(request: pb.AdmitRequest) -> pb.VoidRequest:
    """Releases what an Admit may have taken whose answer never came; whose account it was, only auth can tell."""
    return pb.VoidRequest(
        call_id=request.call_id,
        run_id=request.run_id,
        account_id=request.only_account_id,
        credential=None if request.only_account_id else request.credential,
    )


def _refusal(order: Order, response: pb.AdmitResponse) -> GatewayError:
    refused = response.refused
    retry_in = refused.retry_in.ToTimedelta() if refused.HasField("retry_in") else None
    if refused.reason == pb.Refusal.REASON_CREDIT:
        metrics.REFUSALS.by["credit",] += 1
        return _credit_exhausted(order, response)
    limit, message = _LIMITS.get(refused.reason, _LIMITS[pb.Refusal.REASON_REQUESTS])
    metadata = {"limit": limit}
    if refused.HasField("ceiling"):
        metadata["ceiling"] = str(refused.ceiling)
        message = f"the call alone is over the limit of {refused.ceiling} {limit.replace('_', ' ')} per minute"
    metrics.REFUSALS.by[limit,] += 1
    return RateLimitedError(message, retry_in=retry_in, metadata=metadata, details=[response.limits])


def _credit_exhausted(order: Order, response: pb.AdmitResponse) -> CreditExhaustedError:
    """Says how far the balance would go, for calls whose price depends on it."""
    message, metadata = "the balance does not cover the call", {}
    if response.refused.HasField("available_nano_usd") and order.max_output_tokens:
        affordable = order.bound.affordable_output_tokens(response.refused.available_nano_usd, order.max_output_tokens)
        metadata["affordable_output_tokens"] = str(affordable)
        message += f"; it would cover max_tokens up to {affordable}" if affordable else ", not even one token of output"
    return CreditExhaustedError(message, metadata=metadata, details=[response.limits])
