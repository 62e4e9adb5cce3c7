"""Neutral events to Chat Completions: the chunks of a stream, and the same answer folded into one completion.

Owns the numbering of tool calls and the exact bytes; refuses to know HTTP, time, or where events come from.
"""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from mws.inference.v1 import generation_pb2 as pb

from edge.answer import Counts, Head, counts_of

_encode = msgspec.json.Encoder().encode

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"

_FINISH_REASONS = {
    pb.FINISH_REASON_UNSPECIFIED: b'"stop"',
    pb.FINISH_REASON_STOP: b'"stop"',
    pb.FINISH_REASON_LENGTH: b'"length"',
    pb.FINISH_REASON_STOP_SEQUENCE: b'"stop"',
    pb.FINISH_REASON_TOOL_CALLS: b'"tool_calls"',
    pb.FINISH_REASON_REFUSAL: b'"content_filter"',
    pb.FINISH_REASON_CONTEXT_FULL: b'"length"',
    pb.FINISH_REASON_PAUSED: b'"stop"',
}


def _usage(counts: Counts) -> bytes:
    return (
        b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
        b'"prompt_tokens_details":{"cached_tokens":%d,"audio_tokens":0},'
        b'"completion_tokens_details":{"reasoning_tokens":%d,"audio_tokens":0,'
        b'"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}'
    ) % (
        counts.prompt,
        counts.output,
        counts.prompt + counts.output,
        counts.cache_read,
        counts.reasoning or 0,
    )


def _finish_reason(reason: pb.FinishReason.ValueType, *, is_legacy: bool) -> bytes:
    if is_legacy and reason == pb.FINISH_REASON_TOOL_CALLS:
        return b'"function_call"'
    return _FINISH_REASONS.get(reason, b'"stop"')


def _is_custom_call(block: pb.OpaqueBlock) -> bool:
    """A whole entry of `tool_calls` that is no function's; its JSON begins with a member."""
    return block.dialect == pb.DIALECT_OPENAI and block.type == "custom"


class ChatStream:
    """Writes one stream. Role once, id and name of each call once, one finish chunk, `[DONE]` last."""

    def __init__(
        self, head: Head, *, include_usage: bool = False, is_legacy: bool = False, shows_thinking: bool = True
    ) -> None:
        self._head = head
        self._include_usage = include_usage
        self._is_legacy = is_legacy
        self._shows_thinking = shows_thinking
        self._calls = -1
        self._awaits_arguments = False
        self._has_text = False
        self._has_started = False
        tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        self._before = (
            b'data: {"id":"chatcmpl-%b","object":"chat.completion.chunk","created":%d,"model":%b,'
            b'"service_tier":"default","system_fingerprint":null,"choices":['
        ) % (head.digits.encode(), head.created_s, _encode(head.model))
        self._after = b',"logprobs":null,"finish_reason":null}]' + tail
        self._tail = tail
        self._writers: dict[str | None, Callable[[Any], bytes]] = {
            "text_delta": self._text,
            "thinking_delta": self._thinking,
            "tool_call_started": self._tool_started,
            "tool_call_delta": self._tool_delta,
            "opaque_block": self._opaque,
            "finished": self._finished,
        }

    def note_started(self, started: pb.MessageStarted) -> None:
        """Chunks before the last hold no usage."""

    def start(self) -> bytes:
        """The role. The content is null until there is text, and stays so where there are only tool calls."""
        self._has_started = True
        content = b'""' if self._has_text else b"null"
        return self._chunk(b'{"role":"assistant","content":%b,"refusal":null}' % content)

    def feed(self, events: Iterable[pb.GenerationEvent]) -> bytes:
        writers = self._writers
        frames = []
        for event in events:
            kind = event.WhichOneof("kind")
            writer = writers.get(kind)
            if writer is not None and kind is not None:
                frames.append(writer(getattr(event, kind)))
        return b"".join(frames)

    def _chunk(self, delta: bytes) -> bytes:
        return b'%b{"index":0,"delta":%b%b' % (self._before, delta, self._after)

    def _text(self, delta: pb.TextDelta) -> bytes:
        self._has_text = True
        return self._end_call() + self._chunk(b'{"content":%b}' % _encode(delta.text))

    def _thinking(self, delta: pb.ThinkingDelta) -> bytes:
        if not self._shows_thinking:
            return b""
        return self._end_call() + self._chunk(b'{"reasoning_content":%b}' % _encode(delta.text))

    def _tool_started(self, call: pb.ToolCallStarted) -> bytes:
        before = self._end_call()
        self._calls += 1
        self._awaits_arguments = True
        if self._is_legacy:
            if self._calls:  # the legacy answer has room for one call
                return before
            return before + self._chunk(b'{"function_call":{"name":%b,"arguments":""}}' % _encode(call.name))
        return before + self._chunk(
            b'{"tool_calls":[{"index":%d,"id":%b,"type":"function","function":{"name":%b,"arguments":""}}]}'
            % (self._calls, _encode(call.id), _encode(call.name))
        )

    def _opaque(self, block: pb.OpaqueBlock) -> bytes:
        if self._is_legacy or not _is_custom_call(block):
            return b""
        before = self._end_call()
        self._calls += 1
        return before + self._chunk(b'{"tool_calls":[{"index":%d,%b]}' % (self._calls, block.json[1:].encode()))

    def _tool_delta(self, delta: pb.ToolCallDelta) -> bytes:
        return self._arguments(delta.arguments_json) if delta.arguments_json else b""

    def _arguments(self, text: str) -> bytes:
        self._awaits_arguments = False
        if self._is_legacy:
            return b"" if self._calls else self._chunk(b'{"function_call":{"arguments":%b}}' % _encode(text))
        return self._chunk(b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}' % (self._calls, _encode(text)))

    def _end_call(self) -> bytes:
        """A call without arguments gets `{}`, since clients parse them."""
        return self._arguments("{}") if self._awaits_arguments else b""

    def _end_nothing(self) -> bytes:
        """An answer without text and calls is an empty text, as the whole reply says too."""
        if self._has_text:
            return b""
        self._has_text = True
        return self._chunk(b'{"content":""}') if self._has_started else b""

    def _finished(self, finished: pb.Finished) -> bytes:
        frames = [
            self._end_call() if self._calls >= 0 else self._end_nothing(),
            b'%b{"index":0,"delta":{},"logprobs":null,"finish_reason":%b}]%b'
            % (self._before, _finish_reason(finished.reason, is_legacy=self._is_legacy), self._tail),
        ]
        if self._include_usage:
            counts = counts_of(finished.usage, self._head.estimated_input_tokens)
            frames.append(b'%b],"usage":%b}\n\n' % (self._before, _usage(counts)))
        frames.append(DONE)
        return b"".join(frames)


class ChatFold:
    """Collects one answer into the body of a completion."""

    def __init__(self, head: Head, *, is_legacy: bool = False, shows_thinking: bool = True) -> None:
        self._head = head
        self._is_legacy = is_legacy
        self._shows_thinking = shows_thinking
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[tuple[pb.ToolCallStarted | bytes, list[str]]] = []  # a call of a custom tool is whole
        self._end: pb.Finished | None = None

    def feed(self, events: Iterable[pb.GenerationEvent]) -> None:
        for event in events:
            kind = event.WhichOneof("kind")
            if kind == "text_delta":
                self._text.append(event.text_delta.text)
            elif kind == "thinking_delta":
                if self._shows_thinking:
                    self._thinking.append(event.thinking_delta.text)
            elif kind == "tool_call_delta":
                self._calls[-1][1].append(event.tool_call_delta.arguments_json)
            elif kind == "finished":
                self._end = event.finished
            else:
                self._begin_call(event)

    def _begin_call(self, event: pb.GenerationEvent) -> None:
        if event.HasField("tool_call_started"):
            self._calls.append((event.tool_call_started, []))
        elif _is_custom_call(event.opaque_block) and not self._is_legacy:
            self._calls.append((event.opaque_block.json.encode(), []))

    def reply(self) -> bytes:
        assert self._end is not None
        counts = counts_of(self._end.usage, self._head.estimated_input_tokens)
        return (
            b'{"id":"chatcmpl-%b","object":"chat.completion","created":%d,"model":%b,"choices":[{"index":0,'
            b'"message":%b,"logprobs":null,"finish_reason":%b}],"usage":%b,"service_tier":"default",'
            b'"system_fingerprint":null}'
        ) % (
            self._head.digits.encode(),
            self._head.created_s,
            _encode(self._head.model),
            self._message(),
            _finish_reason(self._end.reason, is_legacy=self._is_legacy),
            _usage(counts),
        )

    def _message(self) -> bytes:
        content = b"null" if self._calls and not self._text else _encode("".join(self._text))
        members = [b'"role":"assistant","content":%b,"refusal":null,"annotations":[]' % content]
        if self._thinking:
            members.append(b'"reasoning_content":%b' % _encode("".join(self._thinking)))
        if self._calls and self._is_legacy:
            started, pieces = self._calls[0]
            assert not isinstance(started, bytes)
            members.append(b'"function_call":%b' % _function(started, pieces))
        elif self._calls:
            members.append(b'"tool_calls":[%b]' % b",".join(_call(*call) for call in self._calls))
        return b"{%b}" % b",".join(members)


def _call(started: pb.ToolCallStarted | bytes, pieces: list[str]) -> bytes:
    if isinstance(started, bytes):
        return started
    return b'{"id":%b,"type":"function","function":%b}' % (_encode(started.id), _function(started, pieces))


def _function(started: pb.ToolCallStarted, pieces: list[str]) -> bytes:
    return b'{"name":%b,"arguments":%b}' % (_encode(started.name), _encode("".join(pieces) or "{}"))
