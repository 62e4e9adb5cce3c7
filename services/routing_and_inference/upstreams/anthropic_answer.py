"""Reads answers of Anthropic-dialect upstreams, whole or streamed, into events.

Owns the dialect's envelopes and their defects; refuses to know HTTP and how the request was written.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from mws.common.v1.token_usage_pb2 import TokenUsage
from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1.generation_pb2 import GenerationEvent

from services.routing_and_inference.upstreams import counts, errors, payloads
from services.routing_and_inference.upstreams.runs import RunWriter, ToolCall

REASONS: Mapping[str, "pb.FinishReason.ValueType"] = {
    "end_turn": pb.FINISH_REASON_STOP,
    "max_tokens": pb.FINISH_REASON_LENGTH,
    "stop_sequence": pb.FINISH_REASON_STOP_SEQUENCE,
    "tool_use": pb.FINISH_REASON_TOOL_CALLS,
    "refusal": pb.FINISH_REASON_REFUSAL,
    "pause_turn": pb.FINISH_REASON_PAUSED,
    "model_context_window_exceeded": pb.FINISH_REASON_CONTEXT_FULL,
}
_TEXT, _THINKING, _TOOL, _WHOLE = "text", "thinking", "tool_use", ""


class _Delta(msgspec.Struct):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    signature: str | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: dict[str, Any] | None = None
    citation: msgspec.Raw = msgspec.Raw()


class _Event(msgspec.Struct):
    type: str = ""
    index: int = 0
    delta: _Delta | None = None
    content_block: dict[str, Any] | None = None
    message: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    error: Any = None


_decode_event = msgspec.json.Decoder(_Event).decode
_encode = msgspec.json.Encoder().encode


class _Block:
    """A block that has begun and not ended."""

    __slots__ = ("call", "citations", "fragments", "kind", "signature", "start", "texts")

    def __init__(self, kind: str, start: dict[str, Any]) -> None:
        self.kind = kind
        self.start = start
        self.call: ToolCall | None = None
        self.texts: list[str] = []  # of a block that is passed on whole
        self.fragments: list[str] = []
        self.citations: list[Any] = []
        self.signature = ""

    def note_proof(self, delta: _Delta) -> None:
        """What is not content by itself but belongs to it."""
        if delta.signature:
            self.signature = delta.signature
        elif bytes(delta.citation) not in {b"", b"null"}:
            self.citations.append(msgspec.Raw(bytes(delta.citation)))


class AnthropicAnswer:
    """One per answer. `keeps_opaque`: the caller speaks this dialect, so blocks without a neutral form reach it.

    `cites`: texts may have citations, which follow the text that they belong to; so such texts wait for their end.
    `answer_tool`: the input of this tool is the answer itself, and no call.
    """

    def __init__(
        self,
        runs: RunWriter,
        tool_id: Callable[[str], str],
        *,
        keeps_opaque: bool,
        cites: bool = False,
        answer_tool: str = "",
    ) -> None:
        self._runs = runs
        self._tool_id = tool_id
        self._keeps_opaque = keeps_opaque
        self._cites = cites
        self._answer_tool = answer_tool
        self._blocks: dict[int, _Block] = {}
        self._stop_reason = ""
        self._stop_sequence = ""
        self._stop_details: Mapping[str, Any] = {}
        self._usage = TokenUsage()
        self.begun = False
        self._readers: Mapping[str, Callable[[_Event], None]] = {
            "message_start": self._read_start,
            "content_block_start": self._read_block_start,
            "content_block_stop": self._read_block_stop,
            "message_delta": self._read_message_delta,
        }

    @property
    def finished(self) -> bool:
        return bool(self._stop_reason)

    @property
    def opening_usage(self) -> TokenUsage | None:
        return self._usage if self.begun else None

    def feed(self, name: bytes, payload: bytes) -> bool:
        """One event of a stream (True: `message_stop`), or a whole message. Raises UpstreamFailure."""
        try:
            event = _decode_event(payload)
        except errors.UNREADABLE:
            return self._feed_unusual(name, payload)
        kind = event.type or name.decode("latin-1")
        if kind == "content_block_delta" and event.delta is not None:
            self._read_delta(event.index, event.delta)
        elif kind == "message_stop":
            return True
        elif kind == "message":
            self._read_message(_object(payload))
        elif kind == "error" or event.error or not kind:
            _refuse_error(payload)
        elif reader := self._readers.get(kind):
            reader(event)
        return False

    def end(self, *, done: bool) -> GenerationEvent:
        """The last event; what the runs still hold comes before it."""
        if not self._stop_reason and (not done or self._runs.is_empty or self._runs.has_incomplete_call):
            raise errors.cut()
        for index in list(self._blocks):
            self._end_block(index)
        self._runs.end()
        event = GenerationEvent()
        event.finished.reason = self._reason()
        if event.finished.reason == pb.FINISH_REASON_STOP_SEQUENCE:
            event.finished.stop_sequence = self._stop_sequence
        if event.finished.reason == pb.FINISH_REASON_REFUSAL and self._keeps_opaque and self._stop_details:
            event.finished.stop_details_json = _refusal(self._stop_details)
        event.finished.usage.CopyFrom(self._usage)
        return event

    def _feed_unusual(self, name: bytes, payload: bytes) -> bool:
        """Fields of unusual types, a `[DONE]` of somebody who speaks two dialects, or no JSON at all."""
        text = payload.strip()
        if not text or text.startswith(b"[DONE]"):
            return False
        body = _object(payloads.repaired(payload))
        kind = body.get("type")
        if kind == "message":
            self._read_message(body)
            return False
        if kind == "error" or "error" in body or name == b"error":
            raise errors.of_error_in_answer(body)
        try:
            event = msgspec.convert(body, _Event, strict=False)
        except msgspec.ValidationError:
            raise errors.malformed() from None
        return self.feed(name, _encode(event))

    def _read_start(self, event: _Event) -> None:
        if not self.begun:  # a second one is a splice of the upstream's: its envelope says nothing new
            self.begun = True
            self._note_usage((event.message or {}).get("usage"))

    def _read_block_start(self, event: _Event) -> None:
        self._begin_block(event.index, event.content_block or {})

    def _read_block_stop(self, event: _Event) -> None:
        self._end_block(event.index)

    def _read_message_delta(self, event: _Event) -> None:
        self._note_usage(event.usage)
        if event.delta is not None:
            self._note_stop(event.delta.stop_reason, event.delta.stop_sequence)
            self._stop_details = event.delta.stop_details or self._stop_details

    def _begin_block(self, index: int, start: dict[str, Any]) -> None:
        self._end_block(index)
        self.begun = True
        kind = _text(start.get("type")) or _TEXT
        cited = kind == _TEXT and self._keeps_opaque and (self._cites or isinstance(start.get("citations"), list))
        block = self._blocks[index] = _Block(kind if kind in {_TEXT, _THINKING, _TOOL} and not cited else _WHOLE, start)
        if block.kind == _TOOL and self._answer_tool and start.get("name") == self._answer_tool:
            return
        if block.kind == _TOOL:
            block.call = self._runs.tool_call(self._tool_id(str(start.get("id") or "")), str(start.get("name") or ""))
        elif block.kind == _THINKING:
            self._runs.thinking(_text(start.get("thinking")))
            block.signature = _text(start.get("signature"))
        elif block.kind == _TEXT:
            self._runs.text(_text(start.get("text")))

    def _read_delta(self, index: int, delta: _Delta) -> None:
        block = self._blocks.get(index)
        if block is None:  # the upstream forgot to begin it
            self._begin_block(index, {"type": _implied(delta)})
            block = self._blocks[index]
        if delta.text:
            if block.kind == _WHOLE:
                block.texts.append(delta.text)
            else:
                self._runs.text(delta.text)
        elif delta.partial_json:
            block.fragments.append(delta.partial_json)
            if block.call is not None:
                self._runs.arguments(block.call, delta.partial_json)
        elif delta.thinking:
            self._runs.thinking(delta.thinking)
        else:
            block.note_proof(delta)

    def _end_block(self, index: int) -> None:
        block = self._blocks.pop(index, None)
        if block is None:
            return
        if block.kind == _TOOL:
            self._end_tool(block)
        elif block.kind == _THINKING:
            if block.signature:
                self._runs.signature(block.signature)
        elif block.kind == _WHOLE:
            self._pass_on(block)

    def _end_tool(self, block: _Block) -> None:
        fragments = "".join(block.fragments).strip()
        stated = None if fragments else block.start.get("input")
        if block.call is None:  # the tool whose input is the answer
            self._runs.text(_compact(fragments) if fragments else _encode(stated or {}).decode())
            return
        if stated:
            self._runs.arguments(block.call, _encode(stated).decode())
        self._runs.end_call(block.call)

    def _pass_on(self, block: _Block) -> None:
        kind = _text(block.start.get("type")) or _TEXT
        text = _text(block.start.get("text")) + "".join(block.texts)
        if kind == "redacted_thinking":
            self._runs.redacted_thinking(_text(block.start.get("data")))
        elif kind == _TEXT and not block.citations and not block.start.get("citations"):
            self._runs.text(text)
        elif self._keeps_opaque:
            whole = dict(block.start)
            if kind == _TEXT:
                whole["text"] = text
                stated = block.start.get("citations")
                whole["citations"] = [*(stated if isinstance(stated, list) else ()), *block.citations]
            elif block.fragments:
                fragments = "".join(block.fragments)
                whole["input"] = msgspec.Raw(fragments) if _is_object(fragments) else {}
            self._runs.opaque(pb.DIALECT_ANTHROPIC, kind, _encode(whole).decode())

    def _read_message(self, message: Mapping[str, Any]) -> None:
        self.begun = True
        content = message.get("content")
        for index, block in enumerate(content if isinstance(content, list) else []):
            if isinstance(block, dict):
                self._begin_whole_block(index, block)
                self._end_block(index)
        if isinstance(content, str):
            self._runs.text(content)
        self._note_usage(message.get("usage"))
        self._note_stop(message.get("stop_reason"), message.get("stop_sequence"))
        details = message.get("stop_details")
        self._stop_details = details if isinstance(details, dict) else self._stop_details

    def _begin_whole_block(self, index: int, block: dict[str, Any]) -> None:
        if block.get("type") == _TEXT and not block.get("citations"):
            block = {name: value for name, value in block.items() if name != "citations"}
        self._begin_block(index, block)

    def _note_stop(self, reason: object, sequence: object) -> None:
        if isinstance(reason, str) and reason:
            self._stop_reason = reason
        if isinstance(sequence, str) and sequence:
            self._stop_sequence = sequence

    def _note_usage(self, usage: object) -> None:
        if isinstance(usage, Mapping):
            counts.of_anthropic(usage, self._usage)

    def _reason(self) -> "pb.FinishReason.ValueType":
        reason = REASONS.get(self._stop_reason, pb.FINISH_REASON_STOP)
        if reason == pb.FINISH_REASON_STOP and self._runs.has_tools:
            return pb.FINISH_REASON_TOOL_CALLS
        if reason == pb.FINISH_REASON_TOOL_CALLS and not self._runs.has_tools:
            return pb.FINISH_REASON_STOP
        return reason


def _refuse_error(payload: bytes) -> None:
    """Raises for an error, labelled as one or not; what has no type and says nothing is ignored."""
    body = _object(payload)
    if body.get("type") == "error" or body.get("error") or "message" in body or "detail" in body:
        raise errors.of_error_in_answer(body)


def _refusal(details: Mapping[str, Any]) -> str:
    """Why the provider refused, in its own words but for what names machines or accounts."""
    written: dict[str, Any] = {"type": "refusal"}
    for name in ("category", "explanation"):
        value = details.get(name)
        written[name] = errors.clean(value) if isinstance(value, str) else None
    return _encode(written).decode()


def _implied(delta: _Delta) -> str:
    if delta.partial_json is not None:
        return _TOOL
    return _THINKING if delta.thinking is not None or delta.signature is not None else _TEXT


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _object(payload: bytes) -> dict[str, Any]:
    body = payloads.decode(payload)
    if not isinstance(body, dict):
        raise errors.malformed()
    return body


def _compact(text: str) -> str:
    """As a whole answer's input is written; what was cut short stays as it is."""
    try:
        return msgspec.json.format(text, indent=-1)
    except errors.UNREADABLE:
        return text


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except errors.UNREADABLE:
        return False
