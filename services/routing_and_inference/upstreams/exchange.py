"""What every HTTP dialect does alike: send one attempt, refuse bad statuses, relay the answer, whole or streamed.

Owns headers, timeouts and the ends of an attempt; refuses to know any dialect's bodies.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from mws.inference.v1.generation_pb2 import GenerationEvent

from services.routing_and_inference.catalog import Option, UpstreamTarget
from services.routing_and_inference.ports import UpstreamFailure, UpstreamRequest
from services.routing_and_inference.upstreams import errors
from services.routing_and_inference.upstreams.http import (
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
_STREAM_BEGINNINGS = (b"data:", b"event:", b":")
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


async def post(http: HttpClient, attempt: Attempt, url: str, headers: Mapping[str, str], body: bytes) -> HttpResponse:
    """Sends an attempt and gives its answer, a 2xx. Raises UpstreamFailure."""
    all_headers = {
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "user-agent": "mws-gateway",
        "x-request-id": f"{attempt.call_id}.{attempt.attempt}",
        **headers,
    }
    try:
        response = await http.post(HttpRequest(url, all_headers, body, _timeouts(attempt.target.options)))
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
    raise errors.of_status(response.status, response.header, text)


class Answer(Protocol):
    """A dialect's reader of one answer."""

    @property
    def finished(self) -> bool:
        """The upstream has said why it ended: nothing but formalities is missing."""

    def feed(self, name: bytes, payload: bytes) -> bool:
        """Reads an event of a stream (True: it was the last one) or a whole answer. Raises UpstreamFailure."""

    def end(self, *, done: bool) -> GenerationEvent:
        """The last event; `done`: the upstream said that it was over. Raises UpstreamFailure for a broken answer."""


async def relay(
    response: HttpResponse, request: UpstreamRequest, answer: Answer, runs: RunWriter
) -> AsyncIterator[list[GenerationEvent]]:
    """The answer as batches of events. The caller closes the response."""
    yield [started(request)]
    if not response.header("content-type").lower().startswith("text/event-stream"):
        yield await _read_whole(response, answer, runs)
        return
    reader = SseReader()
    batch: list[GenerationEvent] = []
    try:
        over = False
        while not over:
            chunk = await _next_chunk(response, answer)
            said_done = _feed(reader, chunk, answer)
            batch = runs.take()
            over = said_done or not chunk
            if answer.finished:
                response.expect_end(_FORMALITIES_S)
            if batch and not over:
                yield batch
        finished = answer.end(done=said_done)
    except UpstreamFailure:
        if batch := batch if over else runs.take():
            yield batch  # what was said before the failure stands
        raise
    response.leave()
    yield [*batch, *runs.take(), finished]


def _feed(reader: SseReader, chunk: bytes, answer: Answer) -> bool:
    try:
        events = reader.feed(chunk) if chunk else reader.finish()
    except SseTooLongError:
        raise errors.malformed() from None
    return any(answer.feed(name, payload) for name, payload in events)


async def _read_whole(response: HttpResponse, answer: Answer, runs: RunWriter) -> list[GenerationEvent]:
    try:
        body = await response.read(MOST_BYTES)
    except HttpFailure as failure:
        raise errors.of_http(failure, accepted=True) from None
    if body.lstrip().startswith(_STREAM_BEGINNINGS):  # a stream that is not labelled as one
        reader = SseReader()
        done = _feed(reader, body, answer) or _feed(reader, b"", answer)
    else:
        done = not answer.feed(b"", body)
    finished = answer.end(done=done)
    return [*runs.take(), finished]


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
    if not options:
        return _DEFAULTS
    return Timeouts(
        connect_s=_seconds(options.get("connect_timeout_s"), _DEFAULTS.connect_s),
        first_byte_s=_seconds(options.get("first_byte_timeout_s"), _DEFAULTS.first_byte_s),
        idle_s=_seconds(options.get("idle_timeout_s"), _DEFAULTS.idle_s),
    )


def _seconds(value: Option | None, default: float) -> float:
    return float(value) if isinstance(value, int | float) and value > 0 else default
