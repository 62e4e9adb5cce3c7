"""Forwards Messages requests to Anthropic upstreams and gives back their answers word for word.

Owns reading of an answer what its call must know (usage, content, end); refuses to change a byte of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from mws.common.v1.token_usage_pb2 import TokenUsage
from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1.generation_pb2 import GenerationEvent

from services.routing_and_inference.native import NativeAttempt, NativeBatches, NativePiece, PieceKind
from services.routing_and_inference.ports import UpstreamFailure
from services.routing_and_inference.upstreams import counts, errors, payloads
from services.routing_and_inference.upstreams.anthropic_answer import REASONS
from services.routing_and_inference.upstreams.exchange import MOST_BYTES, post
from services.routing_and_inference.upstreams.http import Headers, HttpClient, HttpFailure, HttpResponse
from services.routing_and_inference.upstreams.sse import SseReader, SseTooLongError
from services.routing_and_inference.upstreams.urls import versioned_url

_VERSION = "2023-06-01"
_FORMALITIES_S = 5.0  # how long the end of a stream is waited for after the answer itself has ended
_STOP = b'{"type":"message_stop"}'


class NativeMessages:
    """Implements `NativeUpstream`."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    async def forward(self, attempt: NativeAttempt) -> NativeBatches:
        url = versioned_url(attempt.target.base_url, "v1/messages")
        response = await post(self._http, attempt, url, _headers(attempt), attempt.body)
        try:
            is_stream = response.header("content-type").lower().startswith("text/event-stream")
            if is_stream != attempt.is_stream:
                raise errors.malformed()
            if is_stream:
                async for batch in _stream(response):
                    yield batch
            else:
                yield [_whole(await _read(response))]
        finally:
            response.close()


async def _stream(response: HttpResponse) -> NativeBatches:
    reader, frames = _Reader(), SseReader()
    is_open = True
    while is_open and not reader.is_over:
        events, is_open = await _next_events(response, frames, reader)
        batch: list[NativePiece] = []
        try:
            batch += (piece for name, data in events if (piece := reader.read(name, data)) is not None)
        except UpstreamFailure:
            if batch:
                yield batch  # what was said before the failure stands
            raise
        if not is_open:
            batch += reader.end()
        elif reader.has_stopped and not reader.is_over:
            response.expect_end(_FORMALITIES_S)
        if batch:
            yield batch
    response.leave()


async def _next_events(
    response: HttpResponse, frames: SseReader, reader: "_Reader"
) -> tuple[list[tuple[bytes, bytes]], bool]:
    """The events that arrived now, and whether more may follow. Raises UpstreamFailure."""
    try:
        chunk = await response.read_chunk()
        return (frames.feed(chunk), True) if chunk else (frames.finish(), False)
    except HttpFailure as failure:
        if reader.has_stopped:
            return [], False
        raise errors.of_http(failure, accepted=True) from None
    except SseTooLongError:
        raise errors.malformed() from None


async def _read(response: HttpResponse) -> bytes:
    try:
        return await response.read(MOST_BYTES)
    except HttpFailure as failure:
        raise errors.of_http(failure, accepted=True) from None


def _headers(attempt: NativeAttempt) -> Headers:
    options = attempt.target.options
    headers = {"anthropic-version": attempt.version or str(options.get("anthropic_version", _VERSION))}
    if attempt.target.api_key:
        headers["x-api-key"] = attempt.target.api_key
    stated = f"{options.get('anthropic_beta', '')},{attempt.betas}".split(",")
    if betas := dict.fromkeys(beta.strip() for beta in stated if beta.strip()):
        headers["anthropic-beta"] = ",".join(betas)
    return tuple(headers.items())


# ---- streams ----


class _Delta(msgspec.Struct):
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class _Event(msgspec.Struct):
    type: str = ""
    message: dict[str, Any] | None = None
    content_block: dict[str, Any] | None = None
    delta: _Delta | None = None
    usage: dict[str, Any] | None = None


_decode_event = msgspec.json.Decoder(_Event).decode
_UNUSUAL = _Event()
# Blocks that begin empty and say something with their first delta.
_EMPTY_BLOCKS = frozenset({"text", "thinking"})


class _Reader:
    """Reads the events of one stream."""

    def __init__(self) -> None:
        self.is_over = False  # `message_stop` was read
        self.has_stopped = False  # why it stopped was read; nothing but formalities is missing
        self._usage = TokenUsage()

    def read(self, name: bytes, data: bytes) -> NativePiece | None:
        """The piece that an event is; None for one that says nothing. Raises UpstreamFailure."""
        if self.is_over or not data.strip():
            return None
        event = _read_event(data)
        kind = event.type or name.decode("latin-1")
        if kind == "error":
            raise errors.of_error_in_answer(payloads.decode(payloads.repaired(data)))
        if kind == "message_stop":
            self.is_over = True
            return NativePiece(_native(kind, data), PieceKind.END)
        usage = self._counted(event)
        reason = self._reason(event)
        text = _text_of(event.delta) if kind == "content_block_delta" and event.delta is not None else ""
        is_content = kind == "content_block_delta" or (
            event.content_block is not None and event.content_block.get("type") not in _EMPTY_BLOCKS
        )
        return NativePiece(
            _native(kind, data), PieceKind.CONTENT if is_content else PieceKind.LEAD, text, usage, reason
        )

    def end(self) -> list[NativePiece]:
        """What an upstream forgot to say that had stopped."""
        if self.is_over or not self.has_stopped:
            return []
        self.is_over = True
        return [NativePiece(_native("message_stop", _STOP), PieceKind.END)]

    def _counted(self, event: _Event) -> TokenUsage | None:
        reported = event.usage if event.usage is not None else (event.message or {}).get("usage")
        if not isinstance(reported, dict):
            return None
        note_usage(reported, self._usage)
        usage = TokenUsage()
        usage.CopyFrom(self._usage)
        return usage

    def _reason(self, event: _Event) -> "pb.FinishReason.ValueType":
        if event.delta is None or not event.delta.stop_reason:
            return pb.FINISH_REASON_UNSPECIFIED
        self.has_stopped = True
        return REASONS.get(event.delta.stop_reason, pb.FINISH_REASON_STOP)


def _read_event(data: bytes) -> _Event:
    try:
        try:
            return _decode_event(data)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _decode_event(payloads.repaired(data))  # it passes as it came
    except msgspec.ValidationError:
        return _UNUSUAL  # a newer event, in which a member has another type: it passes, and counts for nothing


def _text_of(delta: _Delta) -> str:
    return delta.text or delta.thinking or delta.partial_json or ""


def _native(name: str, data: bytes) -> GenerationEvent:
    event = GenerationEvent()
    event.native_event.name = name
    event.native_event.data = data
    return event


# ---- whole answers ----


def _whole(body: bytes) -> NativePiece:
    try:
        message = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = payloads.repaired(body)
        message = payloads.decode(body)
    if not isinstance(message, dict):
        raise errors.malformed()
    if message.get("type") == "error":
        raise errors.of_error_in_answer(message)
    content = message.get("content")
    if not isinstance(content, list):
        raise errors.malformed()
    usage = None
    if isinstance(message.get("usage"), dict):
        note_usage(message["usage"], usage := TokenUsage())
    reason = REASONS.get(str(message.get("stop_reason")), pb.FINISH_REASON_STOP)
    return NativePiece(_native("message", body), PieceKind.END, _text_of_blocks(content), usage, reason)


def _text_of_blocks(content: Sequence[object]) -> str:
    texts = []
    for block in content:
        if isinstance(block, Mapping):
            texts += [block[name] for name in ("text", "thinking", "data") if isinstance(block.get(name), str)]
            if block.get("input"):
                texts.append(msgspec.json.encode(block["input"]).decode())
    return "".join(texts)


def note_usage(reported: Mapping[str, Any], usage: TokenUsage) -> None:
    """Adds what is reported here: tokens, and the searches that the upstream made."""
    counts.of_anthropic(reported, usage)
    tools = reported.get("server_tool_use")
    if isinstance(tools, Mapping) and (searches := counts.count(tools.get("web_search_requests"))) is not None:
        usage.search_units = searches
