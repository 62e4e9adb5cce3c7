"""Answers of the company proxy: events of a stream as they came, and whole messages with their members in fixed order.

Owns that order and the nulls that stand for absent members; refuses to drop or to change any value.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from mws.inference.v1 import generation_pb2 as pb

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

_MESSAGE = ("id", "content", "model", "role", "stop_reason", "stop_sequence", "type", "usage")
_USAGE = (
    "cache_creation",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "inference_geo",
    "input_tokens",
    "output_tokens",
    "server_tool_use",
    "service_tier",
)
_CACHE_CREATION = ("ephemeral_1h_input_tokens", "ephemeral_5m_input_tokens")
_BLOCKS: Mapping[str, tuple[str, ...]] = {
    "text": ("citations", "text", "type"),
    "tool_use": ("id", "input", "name", "type"),
    "thinking": ("signature", "thinking", "type"),
    "redacted_thinking": ("data", "type"),
}


def ordered(value: object, names: tuple[str, ...]) -> Any:
    """An object with these members first, null where it has none, and then all others as they stood."""
    if not isinstance(value, dict):
        return value
    known = {name: value.get(name) for name in names}
    return {**known, **{name: member for name, member in value.items() if name not in known}}


def whole_message(body: bytes) -> bytes:
    """A message as this surface writes it: compact, its characters as they are."""
    message = ordered(_decode(body), _MESSAGE)
    content = message["content"]
    if isinstance(content, list):
        message["content"] = [_block(block) for block in content]
    usage = ordered(message["usage"], _USAGE)
    if isinstance(usage, dict):
        usage["cache_creation"] = ordered(usage["cache_creation"], _CACHE_CREATION)
    message["usage"] = usage
    return _encode(message)


def _block(block: object) -> Any:
    kind = block.get("type") if isinstance(block, dict) else None
    return ordered(block, _BLOCKS.get(kind, ())) if isinstance(kind, str) else block


class NativeStream:
    """An `AnswerStream` of events that somebody else wrote."""

    def note_started(self, started: pb.MessageStarted) -> None:
        """The answer's own first event says it all."""

    def start(self) -> bytes:
        """Nothing is invented: the first frames are the upstream's."""
        return b""

    def feed(self, events: Iterable[pb.GenerationEvent]) -> bytes:
        """The frames of a batch."""
        return b"".join(_frame(event.native_event) for event in events if event.HasField("native_event"))


def _frame(event: pb.NativeEvent) -> bytes:
    data = event.data if b"\n" not in event.data else event.data.replace(b"\n", b"\ndata: ")
    return b"event: %b\ndata: %b\n\n" % (event.name.encode(), data)


class NativeFold:
    """An `AnswerFold` of a message that came in one piece."""

    def __init__(self) -> None:
        self._body = b"null"

    def feed(self, events: Iterable[pb.GenerationEvent]) -> None:
        """Keeps the message."""
        for event in events:
            if event.HasField("native_event"):
                self._body = event.native_event.data

    def reply(self) -> bytes:
        """The body of the answer."""
        return whole_message(self._body)
