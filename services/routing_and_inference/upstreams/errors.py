"""What an upstream's failure means: from status, headers and body to one `UpstreamFailure`.

Owns every shape of error body and the cleaning of text; refuses to decide what happens next (`routing`).
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import msgspec

from services.routing_and_inference.catalog import UpstreamTarget
from services.routing_and_inference.ports import FailureKind, UpstreamFailure
from services.routing_and_inference.upstreams.http import HttpFailure, HttpFailureKind

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # what reading somebody's JSON may raise
_REMOVED = "[removed]"
_MOST_TEXT = 300  # characters of an upstream's message that a caller gets to see
_MOST_READ = 2400  # characters of it that are looked at
_LONGEST_WAIT = timedelta(minutes=10)

_OF_HTTP = {
    HttpFailureKind.CONNECT: FailureKind.UNAVAILABLE,
    HttpFailureKind.TIMEOUT: FailureKind.TIMEOUT,
    HttpFailureKind.CUT: FailureKind.CUT,
    HttpFailureKind.MALFORMED: FailureKind.MALFORMED,
}

_REQUEST_AT_FAULT = frozenset({400, 413, 422})
_CANNOT_NOW = frozenset({408, 409, 425, 429, 529})
# Ours to repair, with whatever status it comes: some providers say it with 400.
_OUR_ACCOUNT = frozenset(
    {
        "account_deactivated",
        "authentication_error",
        "billing_error",
        "billing_hard_limit_reached",
        "billing_not_active",
        "insufficient_quota",
        "invalid_api_key",
        "model_not_found",
        "permission_denied",
        "permission_error",
        "unauthenticated",
    }
)
_OURS_IN_WORDS = re.compile(
    r"\bapi[ _-]?keys?\b|credit balance|\bbilling\b|\bpayment\b|\bquota\b|\bunauthori[sz]ed\b|not authori[sz]ed"
    r"|organi[sz]ation (?:has been |is )?(?:disabled|not)|\bproject (?:has been |is )?(?:disabled|not|archived)"
    r"|\bmodel\b.{0,120}?(?:does not exist|not found|is not available|no longer|decommissioned|deprecated)",
    re.IGNORECASE | re.DOTALL,
)
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

_TOP_LEVELS = "com|net|org|io|ai|dev|cloud|internal|local|localdomain|lan|corp|svc|run|app|co|eu|de|fr|uk|us|cn|ru|ch"
# What may name an account, a key or a machine of the provider or of ours.
_PRIVATE = re.compile(
    r"(?<![a-z0-9+.-])[a-z][a-z0-9+.-]*://\S+|\bwww\.\S+"  # addresses
    r"|(?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.]+"  # e-mail
    r"|\b(?:sk|pk|rk|gsk|xai|key|org|proj|project|req|acct|user|team|tenant|Bearer|Basic)[-_ ][A-Za-z0-9*._/+=-]{6,}"
    r"|\b(?:AKIA|ASIA|AIza|ya29|ghp|glpat|hf)[A-Za-z0-9_-]{8,}"  # keys that are known by how they begin
    r"|\beyJ[\w-]+\.[\w-]+\.?[\w-]*"  # JSON web tokens
    r"|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"  # IPv4
    r"|(?<![\w:])(?=[0-9a-f:]*:[0-9a-f:]*:)[0-9a-f]*(?::[0-9a-f]*){2,7}(?![\w:])"  # IPv6
    rf"|(?<![A-Za-z0-9.-])[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.(?:{_TOP_LEVELS})\b(?::\d+)?"  # host names
    r"|\blocalhost(?::\d+)?\b"
    r"|\b\d{9,}\b"  # numbers of accounts and projects
    # anything that looks like a token
    r"|(?<![A-Za-z0-9_-])(?=[A-Za-z0-9_-]*\d)(?=[A-Za-z0-9_-]*[A-Za-z])[A-Za-z0-9_-]{20,}\b",
    re.IGNORECASE,
)
_SHORTEST_SECRET = 6  # characters; anything shorter is a placeholder


class ErrorBody(msgspec.Struct):
    """What an error body says, whatever its shape; either may be empty. `labels`: its type and code in lower case."""

    message: str = ""
    labels: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.message = self.message[:_MOST_READ]


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
    except UNREADABLE:
        text = body[:_MOST_READ].decode("utf-8", "replace").strip()
        return ErrorBody("" if text.startswith("<") else text)


def clean(message: str) -> str:
    """A short message without anything that names an account, a key or a machine."""
    text = " ".join(_PRIVATE.sub(_REMOVED, message[:_MOST_READ]).split())
    return text if len(text) <= _MOST_TEXT else f"{text[: _MOST_TEXT - 1]}…"


def scrub(failure: UpstreamFailure, target: UpstreamTarget) -> None:
    """Takes out of a failure's message what we know of this upstream and callers must not."""
    if failure.message:
        for secret in (target.api_key, urlsplit(target.base_url).netloc, urlsplit(target.base_url).hostname or ""):
            if len(secret) >= _SHORTEST_SECRET:
                failure.message = failure.message.replace(secret, _REMOVED)


def _of_request(status: int, error: ErrorBody, *, accepted: bool) -> UpstreamFailure:
    if _MODELS_OWN_FAULT in error.labels or _is_ours(error):
        return UpstreamFailure(FailureKind.UNAVAILABLE, retryable=True, status=status, accepted=accepted)
    too_long = bool(error.labels & _CONTEXT_CODES) or _CONTEXT_TEXT.search(error.message) is not None
    return UpstreamFailure(
        FailureKind.CONTEXT_TOO_LONG if too_long else FailureKind.REJECTED,
        retryable=False,
        status=status,
        accepted=accepted,
        message=clean(error.message),
    )


def _is_ours(error: ErrorBody) -> bool:
    return bool(error.labels & _OUR_ACCOUNT) or _OURS_IN_WORDS.search(error.message) is not None


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
