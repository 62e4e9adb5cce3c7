"""Neutral events to Anthropic Messages: the frames of a stream, and the same answer folded into one message.

Owns block numbering and the exact bytes; refuses to know HTTP, time, or where events come from.
"""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from mws.inference.v1 import generation_pb2 as pb

from edge.answer import Counts, Head, counts_of
from edge.anthropic.blocks import UNSIGNED
from edge.anthropic.opaque import deltas_of, one_line
from edge.partial_json import as_object

_encode = msgspec.json.Encoder().encode

PING = b'event: ping\ndata: {"type":"ping"}\n\n'

_STOP_REASONS = {
    pb.FINISH_REASON_UNSPECIFIED: b'"end_turn"',
    pb.FINISH_REASON_STOP: b'"end_turn"',
    pb.FINISH_REASON_LENGTH: b'"max_tokens"',
    pb.FINISH_REASON_STOP_SEQUENCE: b'"stop_sequence"',
    pb.FINISH_REASON_TOOL_CALLS: b'"tool_use"',
    pb.FINISH_REASON_REFUSAL: b'"refusal"',
    pb.FINISH_REASON_CONTEXT_FULL: b'"model_context_window_exceeded"',
    pb.FINISH_REASON_PAUSED: b'"pause_turn"',
}
_TEXT_START = b'{"type":"text","text":""}'
_THINKING_START = b'{"type":"thinking","thinking":"","signature":""}'


def _usage(counts: Counts, *, final: bool) -> bytes:
    """`message_delta` has no `service_tier` of its own; otherwise the two places carry the same members."""
    written = counts.cache_write_5m + counts.cache_write_1h
    details = b""
    if counts.reasoning is not None:
        details = b',"output_tokens_details":{"thinking_tokens":%d}' % counts.reasoning
    tier = b"" if final else b',"service_tier":"standard"'
    return (
        b'{"input_tokens":%d,"cache_creation_input_tokens":%d,"cache_read_input_tokens":%d,'
        b'"cache_creation":{"ephemeral_5m_input_tokens":%d,"ephemeral_1h_input_tokens":%d},"output_tokens":%d%b%b}'
    ) % (
        counts.input,
        written,
        counts.cache_read,
        counts.cache_write_5m,
        counts.cache_write_1h,
        counts.output,
        details,
        tier,
    )


def _ending(finished: pb.Finished) -> tuple[bytes, bytes]:
    """`stop_reason` and `stop_sequence` as JSON. A match that the upstream does not name is an ordinary end."""
    if finished.reason == pb.FINISH_REASON_STOP_SEQUENCE and not finished.stop_sequence:
        return b'"end_turn"', b"null"
    matched = _encode(finished.stop_sequence) if finished.reason == pb.FINISH_REASON_STOP_SEQUENCE else b"null"
    return _STOP_REASONS.get(finished.reason, b'"end_turn"'), matched


def _details(finished: pb.Finished) -> bytes:
    """`stop_details`, a member that is there for refusals which the upstream explains."""
    return b',"stop_details":%b' % one_line(finished.stop_details_json) if finished.stop_details_json else b""


class MessageStream:
    """Writes one stream. At most one block is open at any time; indexes count from 0 without gaps."""

    def __init__(self, head: Head, *, shows_thinking: bool = True, omits_thinking_text: bool = False) -> None:
        self._head = head
        self._shows_thinking = shows_thinking
        self._omits_text = omits_thinking_text
        self._index = -1
        self._open = ""
        self._text_prefix = b""  # what stands before the text in a delta of the open block
        self._started_usage: pb.MessageStarted | None = None
        self._writers: dict[str | None, Callable[[Any], bytes]] = {
            "text_delta": self._text,
            "thinking_delta": self._thinking,
            "thinking_signature": self._signature,
            "redacted_thinking": self._redacted,
            "tool_call_started": self._tool_started,
            "tool_call_delta": self._tool_delta,
            "opaque_block": self._opaque,
            "finished": self._finished,
        }

    def note_started(self, started: pb.MessageStarted) -> None:
        """Usage that the upstream has reported before its content, for `message_start`."""
        self._started_usage = started

    def start(self) -> bytes:
        started = self._started_usage
        usage = started.usage if started is not None and started.HasField("usage") else None
        counts = counts_of(usage, self._head.estimated_input_tokens)
        if counts.prompt == 0:
            counts = counts_of(None, self._head.estimated_input_tokens)
        return (
            b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_%b","type":"message",'
            b'"role":"assistant","model":%b,"content":[],"stop_reason":null,"stop_sequence":null,"usage":%b}}\n\n'
        ) % (self._head.digits.encode(), _encode(self._head.model), _usage(counts, final=False))

    def feed(self, events: Iterable[pb.GenerationEvent]) -> bytes:
        writers = self._writers
        frames = []
        for event in events:
            kind = event.WhichOneof("kind")
            writer = writers.get(kind)
            if writer is not None and kind is not None:
                frames.append(writer(getattr(event, kind)))
        return b"".join(frames)

    def _begin(self, kind: str, block: bytes) -> bytes:
        closed = self._close()
        self._index += 1
        self._open = kind
        return (
            b'%bevent: content_block_start\ndata: {"type":"content_block_start","index":%d,"content_block":%b}\n\n'
            % (closed, self._index, block)
        )

    def _delta(self, delta: bytes) -> bytes:
        return b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":%b}\n\n' % (
            self._index,
            delta,
        )

    def _close(self) -> bytes:
        if not self._open:
            return b""
        signed = self._delta(b'{"type":"signature_delta","signature":"%b"}' % UNSIGNED.encode())
        frames = signed if self._open == "thinking" else b""
        self._open = ""
        return b'%bevent: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n' % (
            frames,
            self._index,
        )

    def _text(self, delta: pb.TextDelta) -> bytes:
        if self._open == "text":
            return b"%b%b}}\n\n" % (self._text_prefix, _encode(delta.text))
        begun = self._begin("text", _TEXT_START)
        self._text_prefix = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":'
            b'{"type":"text_delta","text":'
        ) % self._index
        return begun + self._text(delta)

    def _thinking(self, delta: pb.ThinkingDelta) -> bytes:
        if not self._shows_thinking:
            return b""
        begun = b"" if self._open == "thinking" else self._begin("thinking", _THINKING_START)
        if self._omits_text:
            return begun
        return begun + self._delta(b'{"type":"thinking_delta","thinking":%b}' % _encode(delta.text))

    def _signature(self, proof: pb.ThinkingSignature) -> bytes:
        if not self._shows_thinking:
            return b""
        begun = b"" if self._open == "thinking" else self._begin("thinking", _THINKING_START)
        signed = self._delta(b'{"type":"signature_delta","signature":%b}' % _encode(proof.signature))
        self._open = "signed"  # a run ends with its proof: whatever follows begins a new block
        return begun + signed

    def _redacted(self, block: pb.RedactedThinkingBlock) -> bytes:
        if not self._shows_thinking:
            return b""
        return self._begin("redacted", b'{"type":"redacted_thinking","data":%b}' % _encode(block.data))

    def _tool_started(self, call: pb.ToolCallStarted) -> bytes:
        block = b'{"type":"tool_use","id":%b,"name":%b,"input":{}}' % (_encode(call.id), _encode(call.name))
        return self._begin("tool_use", block)

    def _tool_delta(self, delta: pb.ToolCallDelta) -> bytes:
        if not delta.arguments_json:
            return b""
        return self._delta(b'{"type":"input_json_delta","partial_json":%b}' % _encode(delta.arguments_json))

    def _opaque(self, block: pb.OpaqueBlock) -> bytes:
        if block.dialect != pb.DIALECT_ANTHROPIC:
            return b""
        start, deltas = deltas_of(block)
        return self._begin("opaque", start) + b"".join(map(self._delta, deltas))

    def _finished(self, finished: pb.Finished) -> bytes:
        closed = self._close()
        reason, matched = _ending(finished)
        counts = counts_of(finished.usage, self._head.estimated_input_tokens)
        return (
            b'%bevent: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":%b,"stop_sequence":%b%b},'
            b'"usage":%b}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
        ) % (closed, reason, matched, _details(finished), _usage(counts, final=True))


class MessageFold:
    """Collects one answer into the body of a reply, block by block as `MessageStream` would open them."""

    def __init__(self, head: Head, *, shows_thinking: bool = True, omits_thinking_text: bool = False) -> None:
        self._head = head
        self._shows_thinking = shows_thinking
        self._omits_text = omits_thinking_text
        self._blocks: list[bytes] = []
        self._open = ""
        self._pieces: list[str] = []
        self._call: pb.ToolCallStarted | None = None
        self._end: pb.Finished | None = None

    def feed(self, events: Iterable[pb.GenerationEvent]) -> None:
        for event in events:
            kind = event.WhichOneof("kind")
            if kind == "text_delta":
                self._turn_to("text")
                self._pieces.append(event.text_delta.text)
            elif kind == "tool_call_delta":
                self._pieces.append(event.tool_call_delta.arguments_json)
            elif kind == "tool_call_started":
                self._close()
                self._open, self._call = "tool_use", event.tool_call_started
            elif kind == "finished":
                self._close()
                self._end = event.finished
            elif kind is not None:
                self._take_rare(kind, event)

    def _take_rare(self, kind: str, event: pb.GenerationEvent) -> None:
        if kind == "opaque_block" and event.opaque_block.dialect == pb.DIALECT_ANTHROPIC:
            self._close()
            self._blocks.append(event.opaque_block.json.encode())
        if not self._shows_thinking:
            return
        if kind == "thinking_delta":
            self._turn_to("thinking")
            self._pieces.append(event.thinking_delta.text)
        elif kind == "thinking_signature":
            self._turn_to("thinking")
            self._end_thinking(event.thinking_signature.signature)
        elif kind == "redacted_thinking":
            self._close()
            self._blocks.append(b'{"type":"redacted_thinking","data":%b}' % _encode(event.redacted_thinking.data))

    def _turn_to(self, kind: str) -> None:
        if self._open != kind:
            self._close()
            self._open = kind

    def _close(self) -> None:
        if self._open == "text":
            self._blocks.append(b'{"type":"text","text":%b}' % _encode("".join(self._pieces)))
        elif self._open == "thinking":
            self._end_thinking(UNSIGNED)
        elif self._open == "tool_use" and self._call is not None:
            self._blocks.append(
                b'{"type":"tool_use","id":%b,"name":%b,"input":%b}'
                % (_encode(self._call.id), _encode(self._call.name), as_object("".join(self._pieces)))
            )
        self._open = ""
        self._pieces = []

    def _end_thinking(self, signature: str) -> None:
        text = "" if self._omits_text else "".join(self._pieces)
        block = b'{"type":"thinking","thinking":%b,"signature":%b}' % (_encode(text), _encode(signature))
        self._blocks.append(block)
        self._open = ""
        self._pieces = []

    def reply(self) -> bytes:
        assert self._end is not None
        reason, matched = _ending(self._end)
        counts = counts_of(self._end.usage, self._head.estimated_input_tokens)
        return (
            b'{"id":"msg_%b","type":"message","role":"assistant","model":%b,"content":[%b],"stop_reason":%b,'
            b'"stop_sequence":%b%b,"usage":%b}'
        ) % (
            self._head.digits.encode(),
            _encode(self._head.model),
            b",".join(self._blocks),
            reason,
            matched,
            _details(self._end),
            _usage(counts, final=False),
        )
