"""The one error that crosses our process boundaries, and its way to and from `google.rpc.Status`.

Owns the mapping reason -> class -> gRPC code; refuses to know HTTP, dialects, or any service's rules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from mws.common.v1 import error_reason_pb2 as reasons
from mws.common.v1 import limits_pb2

DOMAIN = "mws"
_PREFIX = "ERROR_REASON_"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field at fault: its path (`messages[0].role`) and what is wrong with it."""

    field: str
    description: str


class GatewayError(Exception):
    """A failure with a reason that programs can switch on.

    `message` is for people and must hold no secret and no text of an upstream. `retry_in` is set when waiting helps.
    `limits` is attached when the payer is known and the call asked for capacity. `details` are further status details.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    reason: ClassVar["reasons.ErrorReason.ValueType"] = reasons.ERROR_REASON_INTERNAL

    def __init__(
        self,
        message: str = "internal error",
        *,
        retry_in: timedelta | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        details: Sequence[Message] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_in = retry_in
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.details = tuple(details)

    @property
    def limits(self) -> limits_pb2.LimitsSnapshot | None:
        """The limits after the decision, if they travelled with the failure."""
        return next((d for d in self.details if isinstance(d, limits_pb2.LimitsSnapshot)), None)


class InvalidRequestError(GatewayError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = reasons.ERROR_REASON_REQUEST_INVALID


class MissingCredentialError(GatewayError):
    code = grpc.StatusCode.UNAUTHENTICATED
    reason = reasons.ERROR_REASON_CREDENTIAL_MISSING


class InvalidCredentialError(GatewayError):
    code = grpc.StatusCode.UNAUTHENTICATED
    reason = reasons.ERROR_REASON_CREDENTIAL_INVALID


class CallerNotAllowedError(GatewayError):
    code = grpc.StatusCode.PERMISSION_DENIED
    reason = reasons.ERROR_REASON_CALLER_NOT_ALLOWED


class ForeignAccountError(GatewayError):
    code = grpc.StatusCode.PERMISSION_DENIED
    reason = reasons.ERROR_REASON_ACCOUNT_FOREIGN


class CreditExhaustedError(GatewayError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = reasons.ERROR_REASON_CREDIT_EXHAUSTED


class RateLimitedError(GatewayError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = reasons.ERROR_REASON_RATE_LIMITED


class NotFoundError(GatewayError):
    code = grpc.StatusCode.NOT_FOUND
    reason = reasons.ERROR_REASON_NOT_FOUND


class CallAlreadyAdmittedError(GatewayError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = reasons.ERROR_REASON_CALL_ALREADY_ADMITTED


class IdempotencyKeyReusedError(GatewayError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = reasons.ERROR_REASON_IDEMPOTENCY_KEY_REUSED


class HoldNotOpenError(GatewayError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = reasons.ERROR_REASON_HOLD_NOT_OPEN


class MessageTooLargeError(GatewayError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = reasons.ERROR_REASON_MESSAGE_TOO_LARGE


class ContextTooLongError(GatewayError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = reasons.ERROR_REASON_CONTEXT_TOO_LONG


class UpstreamRejectedError(GatewayError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = reasons.ERROR_REASON_UPSTREAM_REJECTED


class UpstreamUnavailableError(GatewayError):
    code = grpc.StatusCode.UNAVAILABLE
    reason = reasons.ERROR_REASON_UPSTREAM_UNAVAILABLE


class UpstreamOverloadedError(GatewayError):
    code = grpc.StatusCode.UNAVAILABLE
    reason = reasons.ERROR_REASON_UPSTREAM_OVERLOADED


class UpstreamTimeoutError(GatewayError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = reasons.ERROR_REASON_UPSTREAM_TIMEOUT


class UpstreamBrokenError(GatewayError):
    code = grpc.StatusCode.UNAVAILABLE
    reason = reasons.ERROR_REASON_UPSTREAM_BROKEN


class StoreUnavailableError(GatewayError):
    code = grpc.StatusCode.UNAVAILABLE
    reason = reasons.ERROR_REASON_STORE_UNAVAILABLE


class UsageUnrecordableError(GatewayError):
    code = grpc.StatusCode.UNAVAILABLE
    reason = reasons.ERROR_REASON_USAGE_UNRECORDABLE


class ServiceUnavailableError(GatewayError):
    code = grpc.StatusCode.UNAVAILABLE
    reason = reasons.ERROR_REASON_SERVICE_UNAVAILABLE


class DeadlineExceededError(GatewayError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = reasons.ERROR_REASON_DEADLINE_EXCEEDED


class CallCancelledError(GatewayError):
    code = grpc.StatusCode.CANCELLED
    reason = reasons.ERROR_REASON_CANCELLED


class UnimplementedError(GatewayError):
    code = grpc.StatusCode.UNIMPLEMENTED
    reason = reasons.ERROR_REASON_UNIMPLEMENTED


class KeysNotUnlockedError(GatewayError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = reasons.ERROR_REASON_KEYS_NOT_UNLOCKED


class PriceBookUnknownError(GatewayError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = reasons.ERROR_REASON_PRICE_BOOK_UNKNOWN


class AlreadyExistsError(GatewayError):
    code = grpc.StatusCode.ALREADY_EXISTS
    reason = reasons.ERROR_REASON_ALREADY_EXISTS


_CLASSES: list[type[GatewayError]] = [GatewayError, *GatewayError.__subclasses__()]
BY_REASON: Mapping["reasons.ErrorReason.ValueType", type[GatewayError]] = {cls.reason: cls for cls in _CLASSES}

# For a status without our ErrorInfo (another server, a proxy, the transport itself), the class that says the same.
_BY_CODE: Mapping[int, type[GatewayError]] = {
    grpc.StatusCode.CANCELLED.value[0]: CallCancelledError,
    grpc.StatusCode.INVALID_ARGUMENT.value[0]: InvalidRequestError,
    grpc.StatusCode.DEADLINE_EXCEEDED.value[0]: DeadlineExceededError,
    grpc.StatusCode.NOT_FOUND.value[0]: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS.value[0]: AlreadyExistsError,
    grpc.StatusCode.PERMISSION_DENIED.value[0]: CallerNotAllowedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]: MessageTooLargeError,
    grpc.StatusCode.UNIMPLEMENTED.value[0]: UnimplementedError,
    grpc.StatusCode.UNAVAILABLE.value[0]: ServiceUnavailableError,
    grpc.StatusCode.UNAUTHENTICATED.value[0]: MissingCredentialError,
}


def reason_name(error: GatewayError) -> str:
    """The `ErrorInfo.reason` of an error, for example `RATE_LIMITED`."""
    return reasons.ErrorReason.Name(error.reason).removeprefix(_PREFIX)


def to_status(error: GatewayError) -> status_pb2.Status:
    """The wire form: one ErrorInfo, RetryInfo and BadRequest where they apply, then the error's own details."""
    status = status_pb2.Status(code=error.code.value[0], message=error.message)
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=reason_name(error), domain=DOMAIN, metadata=error.metadata)
    )
    if error.retry_in is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(error.retry_in)
        status.details.add().Pack(retry)
    if error.violations:
        bad_request = error_details_pb2.BadRequest()
        for violation in error.violations:
            bad_request.field_violations.add(field=violation.field, description=violation.description)
        status.details.add().Pack(bad_request)
    for detail in error.details:
        status.details.add().Pack(detail)
    return status


def from_status(status: status_pb2.Status) -> GatewayError:
    """The error that a status stands for; total, whatever a foreign or newer server sent."""
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    bad_request = error_details_pb2.BadRequest()
    cls = _BY_CODE.get(status.code, GatewayError)
    metadata: Mapping[str, str] = {}
    retry_in: timedelta | None = None
    details: list[Message] = []
    for detail in status.details:
        try:
            if detail.Unpack(info):
                cls, metadata = _class_of(info, cls), dict(info.metadata)
            elif detail.Unpack(retry):
                retry_in = retry.retry_delay.ToTimedelta()
            elif not detail.Unpack(bad_request):
                details.extend(_known_detail(detail.type_url, detail.value))
        except DecodeError:
            continue
    violations = [FieldViolation(v.field, v.description) for v in bad_request.field_violations]
    return cls(status.message, retry_in=retry_in, metadata=metadata, violations=violations, details=details)


def _class_of(info: error_details_pb2.ErrorInfo, fallback: type[GatewayError]) -> type[GatewayError]:
    if info.domain != DOMAIN:
        return fallback
    name = _PREFIX + info.reason
    known = reasons.ErrorReason.DESCRIPTOR.values_by_name.get(name)
    return BY_REASON.get(reasons.ErrorReason.Value(name), fallback) if known else fallback


# Details that readers of ours know. Filled by `register_detail`, since this module may not import a service's contract.
_DETAILS: dict[str, type[Message]] = {}


def register_detail(message_type: type[Message]) -> type[Message]:
    """Makes a message type readable as a status detail. Call it once, where the type's user is defined."""
    _DETAILS[message_type.DESCRIPTOR.full_name] = message_type
    return message_type


register_detail(limits_pb2.LimitsSnapshot)


def _known_detail(type_url: str, value: bytes) -> list[Message]:
    message_type = _DETAILS.get(type_url.rpartition("/")[2])
    return [message_type.FromString(value)] if message_type else []
