"""What every HTTP dialect does alike: send one attempt, refuse bad statuses, relay the answer, whole or streamed.

Owns headers, timeouts and the ends of an attempt; refuses to know any dialect's bodies.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec
from mws.common.v1.token_usage_pb2 import TokenUsage
from mws.inference.v1.generation_pb2 import GenerationEvent

from services.routing_and_inference.catalog import Option, UpstreamTarget
from services.routing_and_inference.ports import UpstreamFailure, UpstreamRequest
from services.routing_and_inference.upstreams import errors
from services.routing_and_inference.upstreams.http import (
    Headers,
    HttpClient,
    HttpFailure,
    HttpFailureKind,
    HttpRequest,
    HttpResponse,
    Timeouts,
)
from services.routing_and_inference.upstreams.runs import RunWriter
from services.routing_and_inference.upstreams.sse import SseReader, SseTooLongError

MOST_BYTES = 64 * 1024 * 1024  # of an answer in one piece
_MOST_ERROR_BYTES = 256 * 1024
_STREAM_BEGINNINGS = (b"data:", b"event:", b":", b"id:", b"retry:")
_BEFORE_IT = b"\xef\xbb\xbf \t\r\n"  # a byte order mark and white space
_FIXED: Headers = (
    ("content-type", "application/json"),
    ("accept", "application/json, text/event-stream"),
    ("user-agent", "mws-gateway"),
)
_FORMALITIES_S = 5.0  # how long usage and the end of the stream are waited for after the answer itself has ended

_DEFAULTS = Timeouts()


class Attempt(Protocol):
    """What an attempt of any kind says about itself."""

    @property
    def call_id(self) -> str: ...
    @property
    def attempt(self) -> int: ...
    @property
    def target(self) -> UpstreamTarget: ...


async def post(http: HttpClient, attempt: Attempt, url: str, headers: Headers, body: bytes) -> HttpResponse:
    """Sends an attempt and gives its answer, a 2xx. `headers` are the target's own. Raises UpstreamFailure."""
    own = {"x-request-id": f"{attempt.call_id}.{attempt.attempt}"}
    options = attempt.target.options
    timeouts = _timeouts(options) if options else _DEFAULTS
    try:
        response = await http.post(HttpRequest(url, own, body, timeouts, _FIXED + headers))
    except HttpFailure as failure:
        raise errors.of_http(failure, accepted=False) from None
    if 200 <= response.status < 300:
        return response
    try:
        text = await response.read(_MOST_ERROR_BYTES)
    except HttpFailure:
        text = b""  # the status says enough
    finally:
        response.close()
    refusal = errors.of_status(response.status, response.header, text)
    errors.scrub(refusal, attempt.target)
    raise refusal


class Whole(NamedTuple):
    """An answer in one piece."""

    body: bytes
    header: Callable[[str], str]


async def ask(http: HttpClient, attempt: Attempt, url: str, headers: Headers, body: bytes) -> Whole:
    """Sends an attempt and gives its whole answer. Raises UpstreamFailure."""
    response = await post(http, attempt, url, headers, body)
    try:
        return Whole(await response.read(MOST_BYTES), response.header)
    except HttpFailure as failure:
        raise errors.of_http(failure, accepted=True) from None
    finally:
        response.close()


class Answer(Protocol):
    """A dialect's reader of one answer."""

    @property
    def finished(self) -> bool:
        """The upstream has said why it ended: nothing but formalities is missing."""

    @property
    def opening_usage(self) -> TokenUsage | None:
        """What the upstream reports before its content (perhaps nothing); None: it may do so yet."""

    def feed(self, name: bytes, payload: bytes) -> bool:
        """Reads an event of a stream (True: it was the last one) or a whole answer. Raises UpstreamFailure."""

    def end(self, *, done: bool) -> GenerationEvent:
        """The last event; `done`: the upstream said that it was over. Raises UpstreamFailure for a broken answer."""


class Prepared(msgspec.Struct, frozen=True, eq=False):
    """A request in its dialect, and what reads its answer."""

    url: str
    headers: Headers
    body: bytes
    answer: Answer
    runs: RunWriter


async def relay(
    http: HttpClient, request: UpstreamRequest, prepare: Callable[[UpstreamRequest], Prepared]
) -> AsyncGenerator[Sequence[GenerationEvent], None]:
    """One attempt at one upstream, as `Upstream.generate` promises it."""
    prepared = prepare(request)
    response = await post(http, request, prepared.url, prepared.headers, prepared.body)
    answer, events = prepared.answer, _Events(request, prepared)
    try:
        if response.header("content-type").lower().startswith("text/event-stream"):
            if batch := events.take():
                yield batch
            reader = SseReader()
            while not (done := _feed(reader, chunk := await _next_chunk(response, answer), answer)) and chunk:
                if answer.finished:
                    response.expect_end(_FORMALITIES_S)
                if batch := events.take():
                    yield batch
        else:
            yield events.take(due=True)
            done = await _read_whole(response, answer)
        finished = answer.end(done=done)
        response.leave()
        yield [*events.take(due=True), finished]
    except UpstreamFailure as failure:
        if batch := events.take():
            yield batch  # what was said before the failure stands
        errors.scrub(failure, request.target)
        raise
    finally:
        response.close()


class _Events:
    """The runs of an answer behind its first event, which leaves as soon as the opening usage is known."""

    def __init__(self, request: UpstreamRequest, prepared: Prepared) -> None:
        self._answer = prepared.answer
        self._runs = prepared.runs
        self._lead: GenerationEvent | None = started(request)

    def take(self, *, due: bool = False) -> list[GenerationEvent]:
        events = self._runs.take()
        lead = self._lead
        if lead is None:
            return events
        usage = self._answer.opening_usage
        if usage is None and not events and not due:
            return events
        if usage is not None and usage.ByteSize():
            lead.message_started.usage.CopyFrom(usage)
        self._lead = None
        return [lead, *events]


def _feed(reader: SseReader, chunk: bytes, answer: Answer) -> bool:
    try:
        events = reader.feed(chunk) if chunk else reader.finish()
    except SseTooLongError:
        raise errors.malformed() from None
    done = False
    for name, payload in events:
        if done := answer.feed(name, payload):
            break
    return done


async def _read_whole(response: HttpResponse, answer: Answer) -> bool:
    try:
        body = await response.read(MOST_BYTES)
    except HttpFailure as failure:
        raise errors.of_http(failure, accepted=True) from None
    if body.lstrip(_BEFORE_IT).startswith(_STREAM_BEGINNINGS):  # a stream that is not labelled as one
        reader = SseReader()
        return _feed(reader, body, answer) or _feed(reader, b"", answer)
    answer.feed(b"", body)
    return True


async def _next_chunk(response: HttpResponse, answer: Answer) -> bytes:
    try:
        return await response.read_chunk()
    except HttpFailure as failure:
        if answer.finished and failure.kind is not HttpFailureKind.MALFORMED:
            return b""
        raise errors.of_http(failure, accepted=True) from None


def started(request: UpstreamRequest) -> GenerationEvent:
    """The first event of an answer."""
    event = GenerationEvent()
    event.message_started.upstream = request.target.name
    event.message_started.attempt = request.attempt
    return event


def _timeouts(options: Mapping[str, Option]) -> Timeouts:
    return Timeouts(
        connect_s=_seconds(options.get("connect_timeout_s"), _DEFAULTS.connect_s),
        first_byte_s=_seconds(options.get("first_byte_timeout_s"), _DEFAULTS.first_byte_s),
        idle_s=_seconds(options.get("idle_timeout_s"), _DEFAULTS.idle_s),
    )


def _seconds(value: Option | None, default: float) -> float:
    return float(value) if isinstance(value, int | float) and value > 0 else default
