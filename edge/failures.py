"""What a failure means over HTTP, before any dialect words it: status, message, whether and when to try again.

Owns the one table reason -> status; refuses to know envelopes.
"""

import math
from dataclasses import dataclass, replace

from mws.common.v1 import error_reason_pb2 as reasons

from services.runtime.errors import GatewayError

RETRY_AFTER_MAX_S = 60  # newer SDKs sleep as long as they are told
_TOP_UP = "top up at /dashboard/credits"


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure as the caller sees it. `retries` is what `x-should-retry` says; None leaves the header out."""

    status: int
    message: str
    code: str | None = None  # OpenAI's `code`
    kind: str | None = None  # OpenAI's `type` where the status does not settle it
    retries: bool | None = None
    waits: bool = False  # `retry-after` is sent


_UNAVAILABLE = Failure(503, "The service is temporarily unavailable. Please retry shortly.", waits=True, retries=True)
_INTERNAL = Failure(500, "Internal server error")

_TABLE: dict["reasons.ErrorReason.ValueType", Failure] = {
    reasons.ERROR_REASON_UNSPECIFIED: _INTERNAL,
    reasons.ERROR_REASON_REQUEST_INVALID: Failure(400, "", retries=False),
    reasons.ERROR_REASON_CREDENTIAL_MISSING: Failure(
        401,
        "No API key provided. Send it as 'Authorization: Bearer mws_live_...' or 'x-api-key'.",
        code="invalid_api_key",
        retries=False,
    ),
    reasons.ERROR_REASON_CREDENTIAL_INVALID: Failure(
        401, "Invalid API key: it is unknown, revoked or expired.", code="invalid_api_key", retries=False
    ),
    reasons.ERROR_REASON_CALLER_NOT_ALLOWED: Failure(403, "This operation is not allowed.", retries=False),
    reasons.ERROR_REASON_ACCOUNT_FOREIGN: Failure(403, "This account may not be used with this key.", retries=False),
    reasons.ERROR_REASON_CREDIT_EXHAUSTED: Failure(
        402, f"Out of credits: {_TOP_UP}.", code="insufficient_quota", kind="insufficient_quota", retries=False
    ),
    reasons.ERROR_REASON_RATE_LIMITED: Failure(
        429, "", code="rate_limit_exceeded", kind="requests", retries=True, waits=True
    ),
    reasons.ERROR_REASON_NOT_FOUND: Failure(404, "", retries=False),
    reasons.ERROR_REASON_CALL_ALREADY_ADMITTED: Failure(409, "This call is already running.", retries=False),
    reasons.ERROR_REASON_IDEMPOTENCY_KEY_REUSED: Failure(
        409,
        "This Idempotency-Key was used with another request, or its answer was too large to keep.",
        code="idempotency_key_reused",
        retries=False,
    ),
    reasons.ERROR_REASON_HOLD_NOT_OPEN: _INTERNAL,
    reasons.ERROR_REASON_MESSAGE_TOO_LARGE: Failure(413, "Request exceeds the maximum size", retries=False),
    reasons.ERROR_REASON_CONTEXT_TOO_LONG: Failure(400, "", code="context_length_exceeded", retries=False),
    reasons.ERROR_REASON_UPSTREAM_REJECTED: Failure(400, "", retries=False),
    reasons.ERROR_REASON_UPSTREAM_UNAVAILABLE: Failure(
        503, "The upstream provider is unavailable. Please retry with backoff.", waits=True, retries=True
    ),
    reasons.ERROR_REASON_UPSTREAM_OVERLOADED: Failure(
        503, "The upstream provider is overloaded. Please retry with backoff.", waits=True, retries=True
    ),
    reasons.ERROR_REASON_UPSTREAM_TIMEOUT: Failure(
        504, "The upstream provider did not answer in time.", code="timeout"
    ),
    reasons.ERROR_REASON_UPSTREAM_BROKEN: Failure(502, "The upstream provider broke off its answer."),
    reasons.ERROR_REASON_STORE_UNAVAILABLE: _UNAVAILABLE,
    reasons.ERROR_REASON_USAGE_UNRECORDABLE: _UNAVAILABLE,
    reasons.ERROR_REASON_SERVICE_UNAVAILABLE: _UNAVAILABLE,
    reasons.ERROR_REASON_DEADLINE_EXCEEDED: Failure(504, "The request did not finish in time.", code="timeout"),
    reasons.ERROR_REASON_CANCELLED: _UNAVAILABLE,
    reasons.ERROR_REASON_UNIMPLEMENTED: Failure(501, "This operation is not available here.", retries=False),
    reasons.ERROR_REASON_INTERNAL: _INTERNAL,
    reasons.ERROR_REASON_KEYS_NOT_UNLOCKED: Failure(403, f"Keys are not unlocked yet: {_TOP_UP}.", retries=False),
    reasons.ERROR_REASON_PRICE_BOOK_UNKNOWN: _UNAVAILABLE,
    reasons.ERROR_REASON_ALREADY_EXISTS: Failure(409, "It exists already.", retries=False),
}
_LIMITS = {
    "requests": ("requests", "requests per minute of your account"),
    "tokens": ("tokens", "tokens per minute of your account"),
    "concurrency": ("requests", "concurrent requests of your account"),
    "key_requests": ("requests", "requests per minute of this API key"),
    "key_tokens": ("tokens", "tokens per minute of this API key"),
    "ip_requests": ("requests", "unauthenticated requests per minute of this address"),
}


def failure_of(error: GatewayError, *, overloaded_status: int) -> Failure:
    """How a failure is answered. An empty message in the table means that the error's own text is fit for callers."""
    failure = _TABLE.get(error.reason, _INTERNAL)
    reason = error.reason
    if reason == reasons.ERROR_REASON_RATE_LIMITED:
        return _rate_limited(failure, error)
    if reason == reasons.ERROR_REASON_CREDIT_EXHAUSTED:
        return _out_of_credit(failure, error)
    if reason == reasons.ERROR_REASON_UPSTREAM_OVERLOADED:
        return replace(failure, status=overloaded_status)
    if reason == reasons.ERROR_REASON_REQUEST_INVALID and error.violations:
        first = error.violations[0]
        return replace(failure, message=f"{first.field.removeprefix('generation.')}: {first.description}")
    if reason == reasons.ERROR_REASON_CONTEXT_TOO_LONG:
        return replace(failure, message=_too_long(error))
    if reason == reasons.ERROR_REASON_NOT_FOUND and error.metadata.get("resource") == "model":
        return replace(failure, message=error.message, code="model_not_found")
    return failure if failure.message else replace(failure, message=error.message)


def _rate_limited(failure: Failure, error: GatewayError) -> Failure:
    kind, words = _LIMITS.get(error.metadata.get("limit", ""), ("requests", "rate limit of your account"))
    if ceiling := error.metadata.get("ceiling"):
        message = f"Request too large: it alone is over the {ceiling} {words}."
        return replace(failure, message=message, kind=kind, retries=False)
    never = error.retry_in is not None and error.retry_in.total_seconds() > RETRY_AFTER_MAX_S
    message = f"Rate limit reached: {words}."
    if error.retry_in is not None:
        message = f"{message} Please try again in {math.ceil(error.retry_in.total_seconds())} s."
    return replace(failure, message=message, kind=kind, retries=not never)


def _out_of_credit(failure: Failure, error: GatewayError) -> Failure:
    affordable = error.metadata.get("affordable_output_tokens")
    if affordable is None or affordable == "0":
        return failure
    return replace(
        failure,
        message=f"The balance does not cover this request: {_TOP_UP}, or ask for max_tokens <= {affordable}.",
    )


def _too_long(error: GatewayError) -> str:
    """Begins as the real API's message does, since clients compact their history when they see it."""
    if error.message.startswith("prompt is too long"):
        return error.message
    limit = error.metadata.get("context_tokens")
    return f"prompt is too long: the limit is {limit} tokens" if limit else "prompt is too long"


def retry_headers(failure: Failure, error: GatewayError) -> list[tuple[bytes, bytes]]:
    """`x-should-retry`, and when waiting helps `retry-after` in whole seconds with `retry-after-ms` beside it."""
    headers: list[tuple[bytes, bytes]] = []
    if failure.retries is not None:
        headers.append((b"x-should-retry", b"true" if failure.retries else b"false"))
    if failure.waits:
        default_ms = 1000 if failure.retries else RETRY_AFTER_MAX_S * 1000
        wait_ms = math.ceil(error.retry_in.total_seconds() * 1000) if error.retry_in is not None else default_ms
        wait_ms = min(max(wait_ms, 1), RETRY_AFTER_MAX_S * 1000)
        headers.append((b"retry-after", b"%d" % math.ceil(wait_ms / 1000)))
        headers.append((b"retry-after-ms", b"%d" % wait_ms))
    return headers
