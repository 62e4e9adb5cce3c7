"""Failures as OpenAI clients expect them: status, envelope, and the same envelope as a stream's last chunk.

Owns the OpenAI column of the error table; refuses to decide what failed.
"""

import msgspec

from edge.ask import Reply
from edge.failures import Failure, failure_of, retry_headers
from edge.openai.refusals import CodedFieldError
from edge.problems import BadFieldError, bracketed
from services.runtime.errors import GatewayError

_encode = msgspec.json.Encoder().encode


def render(error: GatewayError, _call_id: str = "") -> Reply:
    """The HTTP answer of a failure."""
    failure, param = _failure(error)
    return Reply(failure.status, _envelope(failure, param), retry_headers(failure, error))


def render_event(error: GatewayError, _call_id: str = "") -> bytes:
    """The last chunk of a stream that failed after its head had left."""
    return b"data: %b\n\n" % _envelope(*_failure(error))


def _failure(error: GatewayError) -> tuple[Failure, str | None]:
    if isinstance(error, BadFieldError):
        place = bracketed(error.path)
        message, code = _field_message(error, place)
        return Failure(400, message, code=code, retries=False), place or None
    failure = failure_of(error, overloaded_status=503)
    param = error.violations[0].field.removeprefix("generation.") if error.violations else None
    return failure, param


def _envelope(failure: Failure, param: str | None) -> bytes:
    kind = failure.kind or ("server_error" if failure.status >= 500 else "invalid_request_error")
    return b'{"error":{"message":%b,"type":%b,"param":%b,"code":%b}}' % (
        _encode(failure.message),
        _encode(kind),
        _encode(param),
        _encode(failure.code),
    )


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _field_message(error: BadFieldError, place: str) -> tuple[str, str | None]:
    if error.kind == "missing":
        return f"Missing required parameter: '{place}'.", "missing_required_parameter"
    if error.kind == "type":
        expected = " or ".join(_article(name) for name in error.expected)
        got = error.got if error.got == "null" else _article(error.got)
        if not place:
            return f"Invalid request body: expected {expected}, but got {got} instead.", "invalid_type"
        return f"Invalid type for '{place}': expected {expected}, but got {got} instead.", "invalid_type"
    if isinstance(error, CodedFieldError):
        return error.text, error.openai_code
    if error.kind in ("below", "above"):
        number = "decimal" if error.got == "number" else "integer"
        which, short = ("below minimum", "below_min") if error.kind == "below" else ("above maximum", "above_max")
        bound = f"{error.expected[0]} {error.text.removesuffix('.0')}"
        return f"Invalid '{place}': {number} {which} value. Expected a value {bound}.", f"{number}_{short}_value"
    if error.kind == "json" or not place:
        return error.text if error.text.endswith(".") else f"{error.text}.", None
    text = error.text if error.text.startswith("Invalid '") else f"Invalid value for '{place}': {error.text}."
    return text, "invalid_value"
