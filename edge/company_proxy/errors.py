"""Failures as the company proxy tells them: `{"detail": …}`, a text or the validator's list.

Owns this surface's statuses and words; refuses to decide what failed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from mws.common.v1 import error_reason_pb2 as reasons

from edge.anthropic import errors as anthropic_errors
from edge.ask import Reply
from edge.failures import failure_of, retry_headers
from services.runtime.errors import GatewayError, InvalidRequestError

_encode = msgspec.json.Encoder().encode

# Where this surface differs from the others. An empty text: what `failure_of` says.
_OWN: Mapping["reasons.ErrorReason.ValueType", tuple[int, str]] = {
    reasons.ERROR_REASON_CREDENTIAL_MISSING: (401, "Not authenticated"),
    reasons.ERROR_REASON_CREDENTIAL_INVALID: (401, "The access token is not valid"),
    reasons.ERROR_REASON_CALLER_NOT_ALLOWED: (403, "The access token has none of the roles that may call"),
    reasons.ERROR_REASON_CREDIT_EXHAUSTED: (402, "The account that pays is out of credits"),
    reasons.ERROR_REASON_NOT_FOUND: (400, ""),
    reasons.ERROR_REASON_UPSTREAM_UNAVAILABLE: (502, "The upstream provider is unavailable"),
    reasons.ERROR_REASON_UPSTREAM_BROKEN: (502, "The upstream provider broke off its answer"),
    reasons.ERROR_REASON_UPSTREAM_OVERLOADED: (429, "The upstream provider is overloaded"),
    reasons.ERROR_REASON_UPSTREAM_TIMEOUT: (504, "The upstream provider did not answer in time"),
    reasons.ERROR_REASON_INTERNAL: (500, "Internal Server Error"),
    reasons.ERROR_REASON_UNSPECIFIED: (500, "Internal Server Error"),
}
_CHALLENGE = (b"www-authenticate", b"Bearer")


class InvalidBodyError(InvalidRequestError):
    """A request that breaks the schema. `problems` are the validator's, each with loc, msg, type, input and ctx."""

    def __init__(self, problems: Sequence[Mapping[str, Any]]) -> None:
        super().__init__("the request breaks the schema")
        self.problems = problems


class DiscontinuedError(GatewayError):
    """A route or a model that is not offered any more."""


def render(error: GatewayError, call_id: str) -> Reply:
    """The HTTP answer of a failure. Its id stands in a header."""
    if isinstance(error, InvalidBodyError):
        return Reply(422, detail(error.problems))
    if isinstance(error, DiscontinuedError):
        return Reply(410, detail(error.message))
    failure = failure_of(error, overloaded_status=429)
    status, text = _OWN.get(error.reason, (failure.status, ""))
    headers = retry_headers(failure, error)
    if status == 401:
        headers.append(_CHALLENGE)
    return Reply(status, detail(text or failure.message), headers)


def render_event(error: GatewayError, call_id: str) -> bytes:
    """The last event of a stream that failed after its head had left: Anthropic's own."""
    return anthropic_errors.render_event(error, call_id)


def detail(what: str | Sequence[Mapping[str, Any]]) -> bytes:
    """The body of a failure."""
    return b'{"detail":%b}' % _encode(what)
