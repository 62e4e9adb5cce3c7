"""Failures as Anthropic clients expect them: status, envelope, and the same envelope as a stream's last event.

Owns the Anthropic column of the error table; refuses to decide what failed.
"""

import msgspec

from edge.ask import Reply
from edge.failures import Failure, failure_of, retry_headers
from edge.problems import BadFieldError, UnsupportedEncodingError
from services.runtime.errors import GatewayError

_encode = msgspec.json.Encoder().encode

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    501: "api_error",
    502: "api_error",
    503: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_TYPE_WORDS = {
    "integer": "integer",
    "number": "number",
    "string": "string",
    "boolean": "boolean",
    "array": "list",
    "object": "dictionary",
}
_BOUNDS = {
    ">": "greater than",
    ">=": "greater than or equal to",
    "<": "less than",
    "<=": "less than or equal to",
}


def render(error: GatewayError, call_id: str) -> Reply:
    """The HTTP answer of a failure."""
    failure = _failure(error)
    details = b""
    if isinstance(error, UnsupportedEncodingError):  # the SDKs have a class for this cause alone
        details = b',"details":{"error_code":"request_body_encoding_unsupported"}'
    return Reply(failure.status, _envelope(failure, call_id, details), retry_headers(failure, error))


def render_event(error: GatewayError, call_id: str) -> bytes:
    """The last event of a stream that failed after its head had left."""
    return b"event: error\ndata: %b\n\n" % _envelope(_failure(error), call_id)


def _failure(error: GatewayError) -> Failure:
    if isinstance(error, BadFieldError):
        return Failure(400, _field_message(error), retries=False)
    return failure_of(error, overloaded_status=529)


def _envelope(failure: Failure, call_id: str, details: bytes = b"") -> bytes:
    kind = _TYPES.get(failure.status, "api_error")
    return b'{"type":"error","error":{"type":"%b","message":%b%b},"request_id":%b}' % (
        kind.encode(),
        _encode(failure.message),
        details,
        _encode(call_id),
    )


def _field_message(error: BadFieldError) -> str:
    """The wording of the real API, which is its validator's."""
    text = error.text
    if error.kind == "type":
        words = [_TYPE_WORDS.get(name, name) for name in error.expected]
        text = f"Input should be a valid {' or '.join(words)}"
    elif error.kind in ("below", "above"):
        text = f"Input should be {_BOUNDS[error.expected[0]]} {error.text}"
    place = ".".join(map(str, error.path))
    return f"{place}: {text}" if place else text
