"""What an upstream's failure means: from status, headers and body to one `UpstreamFailure`.

Owns every shape of error body and the cleaning of text; refuses to decide what happens next (`routing`).
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import msgspec

from services.routing_and_inference.ports import FailureKind, UpstreamFailure
from services.routing_and_inference.upstreams.http import HttpFailure, HttpFailureKind

_MOST_TEXT = 300  # characters of an upstream's message that a caller gets to see
_LONGEST_WAIT = timedelta(minutes=10)

_OF_HTTP = {
    HttpFailureKind.CONNECT: FailureKind.UNAVAILABLE,
    HttpFailureKind.TIMEOUT: FailureKind.TIMEOUT,
    HttpFailureKind.CUT: FailureKind.CUT,
    HttpFailureKind.MALFORMED: FailureKind.MALFORMED,
}

_REQUEST_AT_FAULT = frozenset({400, 413, 422})
_CANNOT_NOW = frozenset({408, 409, 425, 429, 529})
_OUR_ACCOUNT = frozenset({"insufficient_quota", "billing_error", "authentication_error", "permission_error"})
_OVERLOADED_TYPES = frozenset(
    {"overloaded_error", "rate_limit_error", "rate_limit_exceeded", "overloaded", "429", "529"}
)
_REQUEST_TYPES = frozenset({"invalid_request_error", "badrequesterror", "bad_request", "400", "413", "422"})
_MODELS_OWN_FAULT = "tool_use_failed"  # the model wrote a call that the provider could not parse: another try may work

_CONTEXT_CODES = frozenset(
    {"context_length_exceeded", "context_window_exceeded", "prompt_too_long", "string_above_max_length"}
)
_CONTEXT_TEXT = re.compile(
    r"prompt is too long|input is too long|(?:maximum|max)[ _](?:model[ _]|context[ _])?(?:context|len(?:gth)?)\b"
    r"|context (?:length|window|size)|too many (?:input )?tokens|reduce the length of the (?:messages|prompt)"
    r"|input (?:tokens? )?exceeds?|inputs? tokens? \+ .*max_(?:new_)?tokens",
    re.IGNORECASE,
)

# What may name an account, a key or a machine of the provider or of ours.
_PRIVATE = re.compile(
    r"https?://\S+|\bwww\.\S+"  # addresses
    r"|\b[\w.+-]+@[\w-]+\.[\w.]+"  # e-mail
    r"|\b(?:sk|pk|rk|gsk|xai|key|org|proj|req|acct|user|team|Bearer)[-_ ][A-Za-z0-9*._-]{6,}"  # keys and ids
    r"|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"  # IPv4
    r"|\b[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.(?:com|net|org|io|ai|dev|cloud|internal|local|run)\b(?::\d+)?"  # host names
    r"|\b(?=[A-Za-z0-9_-]*\d)(?=[A-Za-z0-9_-]*[A-Za-z])[A-Za-z0-9_-]{24,}\b",  # anything that looks like a token
    re.IGNORECASE,
)


class ErrorBody(msgspec.Struct, frozen=True):
    """What an error body says, whatever its shape; either may be empty. `labels`: its type and code in lower case."""

    message: str = ""
    labels: frozenset[str] = frozenset()


def of_http(failure: HttpFailure, *, accepted: bool) -> UpstreamFailure:
    """A failure below the level of status codes."""
    return UpstreamFailure(_OF_HTTP[failure.kind], retryable=True, accepted=accepted)


def malformed(*, accepted: bool = True) -> UpstreamFailure:
    """The answer cannot be read."""
    return UpstreamFailure(FailureKind.MALFORMED, retryable=True, status=200, accepted=accepted)


def cut() -> UpstreamFailure:
    """The answer ended before it was complete."""
    return UpstreamFailure(FailureKind.CUT, retryable=True, status=200, accepted=True)


def failed() -> UpstreamFailure:
    """The answer says that it failed, and no more than that."""
    return UpstreamFailure(FailureKind.UNAVAILABLE, retryable=True, status=200, accepted=True)


def overloaded() -> UpstreamFailure:
    """The answer says that the upstream cannot now."""
    return UpstreamFailure(FailureKind.OVERLOADED, retryable=True, status=200, accepted=True)


def rejected(message: str) -> UpstreamFailure:
    """The request cannot be said in the upstream's dialect; `message` is ours, for the caller."""
    return UpstreamFailure(FailureKind.REJECTED, retryable=False, status=400, message=message)


def of_status(status: int, header: Callable[[str], str], body: bytes) -> UpstreamFailure:
    """An answer with a status other than 2xx."""
    error = read_error(body)
    retry_in = _retry_in(header)
    if status in _REQUEST_AT_FAULT:
        return _of_request(status, error, accepted=False)
    if status in _CANNOT_NOW and not error.labels & _OUR_ACCOUNT:
        return UpstreamFailure(FailureKind.OVERLOADED, retryable=True, retry_in=retry_in, status=status)
    if status == 503 and error.labels & _OVERLOADED_TYPES:
        return UpstreamFailure(FailureKind.OVERLOADED, retryable=True, retry_in=retry_in, status=status)
    kind = FailureKind.TIMEOUT if status in {504, 524} else FailureKind.UNAVAILABLE
    return UpstreamFailure(kind, retryable=True, retry_in=retry_in, status=status)


def of_error_in_answer(body: object) -> UpstreamFailure:
    """An error object inside an answer whose status was 2xx."""
    error = _error_of(body)
    if error.labels & _OVERLOADED_TYPES:
        return overloaded()
    if error.labels & _CONTEXT_CODES or error.labels & _REQUEST_TYPES:
        return _of_request(200, error, accepted=True)
    return failed()


def read_error(body: bytes) -> ErrorBody:
    """Reads an error body of any shape: JSON objects of every vendor, plain text, HTML (of which nothing is kept)."""
    try:
        return _error_of(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = body[: 4 * _MOST_TEXT].decode("utf-8", "replace").strip()
        return ErrorBody("" if text.startswith("<") else text)


def clean(message: str) -> str:
    """A short message without anything that names an account, a key or a machine."""
    text = " ".join(_PRIVATE.sub("[removed]", message[: 8 * _MOST_TEXT]).split())
    return text if len(text) <= _MOST_TEXT else f"{text[: _MOST_TEXT - 1]}…"


def _of_request(status: int, error: ErrorBody, *, accepted: bool) -> UpstreamFailure:
    if _MODELS_OWN_FAULT in error.labels:
        return UpstreamFailure(FailureKind.UNAVAILABLE, retryable=True, status=status, accepted=accepted)
    too_long = bool(error.labels & _CONTEXT_CODES) or _CONTEXT_TEXT.search(error.message) is not None
    return UpstreamFailure(
        FailureKind.CONTEXT_TOO_LONG if too_long else FailureKind.REJECTED,
        retryable=False,
        status=status,
        accepted=accepted,
        message=clean(error.message),
    )


def _error_of(body: object) -> ErrorBody:
    if isinstance(body, list):  # some proxies wrap the object in an array
        body = body[0] if body else None
    if isinstance(body, str):
        return ErrorBody(body)
    if not isinstance(body, Mapping):
        return ErrorBody()
    inner = body.get("error")
    if isinstance(inner, Mapping):
        body = inner
    elif isinstance(inner, str):
        return ErrorBody(inner, _labels(body))
    message = body.get("message")
    if not isinstance(message, str):
        message = _detail(body.get("detail", message))
    return ErrorBody(message, _labels(body))


def _detail(detail: object) -> str:
    """FastAPI's `detail`: a text, or a list of violations."""
    if isinstance(detail, str):
        return detail
    if isinstance(detail, Mapping):
        return _error_of(detail).message
    if isinstance(detail, list):
        found = [entry["msg"] for entry in detail if isinstance(entry, Mapping) and isinstance(entry.get("msg"), str)]
        return "; ".join(found)
    return ""


def _labels(body: Mapping[object, object]) -> frozenset[str]:
    values = [body.get(name) for name in ("type", "code", "error_type", "status")]
    return frozenset(str(value).lower() for value in values if isinstance(value, str | int))


def _retry_in(header: Callable[[str], str]) -> timedelta | None:
    """What `retry-after-ms` or `retry-after` (seconds, or a date) asks for, within reason."""
    wait = _number(header("retry-after-ms"), 0.001)
    if wait is None:
        text = header("retry-after")
        wait = _number(text, 1.0)
        if wait is None and text:
            try:
                wait = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
            except (ValueError, TypeError):
                return None
    if wait is None:
        return None
    return min(max(timedelta(seconds=wait), timedelta()), _LONGEST_WAIT)


def _number(text: str, unit: float) -> float | None:
    try:
        value = float(text) * unit
    except ValueError:
        return None
    return value if 0 <= value < 1e9 else None
