"""Puts the pieces of an answer, in whatever order an upstream sends them, into the legal order of events.

Owns runs: one open at most, calls unique, adjacent pieces of a batch one event. Refuses to know dialects.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import msgspec
from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1.generation_pb2 import GenerationEvent

from services.routing_and_inference.upstreams import errors

_TEXT, _THINKING, _ARGUMENTS = 1, 2, 3

_SAME_NAMES: Mapping[str, str] = MappingProxyType({})


class ToolCall:
    """One tool call of the answer, as far as it has arrived."""

    __slots__ = ("call_id", "ended", "name", "pieces", "started", "unsent")

    def __init__(self, call_id: str, name: str) -> None:
        self.call_id = call_id
        self.name = name
        self.pieces: list[str] = []
        self.unsent = 0  # position in `pieces` of the first piece that is not sent yet
        self.started = False
        self.ended = False  # the upstream said so

    @property
    def arguments(self) -> str:
        return "".join(self.pieces)

    def is_complete(self) -> bool:
        """No more pieces can follow."""
        return self.ended or is_json(self.arguments)

    def streams(self) -> bool:
        """Pieces may leave as they come. Whatever is not an object is repaired at the end, so it has to wait."""
        return next((piece.lstrip() for piece in self.pieces if piece.strip()), "").startswith("{")


class RunWriter:
    """One per answer. Feed it pieces; `take` gives the events of what was fed since."""

    __slots__ = (
        "_ids",
        "_is_single",
        "_kind",
        "_live",
        "_mint_id",
        "_out",
        "_pieces",
        "_tool_names",
        "_waiting",
        "has_content",
        "has_tools",
    )

    def __init__(
        self, mint_id: Callable[[], str], tool_names: Mapping[str, str] = _SAME_NAMES, *, is_single: bool = False
    ) -> None:
        self._mint_id = mint_id
        self._is_single = is_single  # calls after the first one are dropped: not every upstream keeps to it
        self._tool_names = tool_names  # as the upstream knows them -> as the caller does
        self._out: list[GenerationEvent] = []
        self._kind = 0  # of the delta that is being collected
        self._pieces: list[str] = []
        self._live: ToolCall | None = None  # the call whose pieces leave as they come
        self._waiting: list[ToolCall | tuple[int, str]] = []  # what stands after an unfinished live call
        self._ids: set[str] = set()
        self.has_content = False
        self.has_tools = False

    def text(self, piece: str) -> None:
        if self._live is None or self._advance():
            self._collect(_TEXT, piece)
        else:
            self._waiting.append((_TEXT, piece))

    def thinking(self, piece: str) -> None:
        if self._live is None or self._advance():
            self._collect(_THINKING, piece)
        else:
            self._waiting.append((_THINKING, piece))

    def signature(self, signature: str) -> None:
        event = GenerationEvent()
        event.thinking_signature.signature = signature
        self._whole(event)

    def redacted_thinking(self, data: str) -> None:
        event = GenerationEvent()
        event.redacted_thinking.data = data
        self._whole(event)

    def opaque(self, dialect: "pb.Dialect.ValueType", block_type: str, json: str) -> None:
        event = GenerationEvent()
        event.opaque_block.dialect = dialect
        event.opaque_block.type = block_type
        event.opaque_block.json = json
        self._whole(event)

    def tool_call(self, call_id: str = "", name: str = "") -> ToolCall:
        """A further call. Id and name may follow as long as it has no arguments."""
        call = ToolCall(call_id, name)
        if self._live is None or self._advance():
            self._live = call
        else:
            self._waiting.append(call)
        return call

    def arguments(self, call: ToolCall, piece: str) -> None:
        """More arguments of a call. Pieces of a call that was complete and is closed are dropped."""
        call.pieces.append(piece)
        if call is self._live:
            self._send(call)
            if self._waiting and piece.rstrip().endswith("}"):
                self._advance()

    def end_call(self, call: ToolCall) -> None:
        """The upstream says that the call is complete."""
        call.ended = True
        if call is self._live:
            self._advance()

    def end(self) -> None:
        """Nothing follows: closes what is open, whole or not."""
        while self._live is not None:
            self._live.ended = True
            self._advance()

    @property
    def is_empty(self) -> bool:
        """Nothing was said, and no call has begun."""
        return not self.has_content and (self._live is None or not self._live.name)

    @property
    def has_incomplete_call(self) -> bool:
        """A call is open whose arguments are not whole JSON."""
        live = self._live
        return live is not None and bool(live.pieces) and not live.is_complete()

    def take(self) -> list[GenerationEvent]:
        """The events since the last `take`; the list is the caller's."""
        if self._pieces:
            self._flush()
        out = self._out
        self._out = []
        return out

    def _advance(self) -> bool:
        """Closes live calls that are complete and promotes what waits. True: no call is open any more."""
        while self._live is not None and self._live.is_complete():
            self._close(self._live)
            self._live = None
            while self._waiting and self._live is None:
                first = self._waiting.pop(0)
                if isinstance(first, ToolCall):
                    self._live = first
                    self._send(first)
                else:
                    self._collect(*first)
        return self._live is None

    def _send(self, call: ToolCall) -> None:
        if not call.name or not call.streams() or (self._is_single and self._is_surplus(call)):
            return
        self._start(call)
        for piece in call.pieces[call.unsent :]:
            self._collect(_ARGUMENTS, piece)
        call.unsent = len(call.pieces)

    def _close(self, call: ToolCall) -> None:
        if not call.name or self._is_surplus(call):  # nothing can be done with a call of no tool
            return
        self._start(call)
        if not call.streams() and (repaired := as_object(call.arguments)):
            self._collect(_ARGUMENTS, repaired)
        self._flush()

    def _is_surplus(self, call: ToolCall) -> bool:
        return self._is_single and self.has_tools and not call.started

    def _start(self, call: ToolCall) -> None:
        if call.started:
            return
        call.started = True
        if not call.call_id or call.call_id in self._ids:
            call.call_id = self._mint_id()
        self._ids.add(call.call_id)
        self._flush()
        event = GenerationEvent()
        event.tool_call_started.id = call.call_id
        event.tool_call_started.name = self._tool_names.get(call.name, call.name)
        self._out.append(event)
        self.has_content = self.has_tools = True

    def _collect(self, kind: int, piece: str) -> None:
        if not piece:
            return
        if kind != self._kind:
            self._flush()
            self._kind = kind
        self._pieces.append(piece)
        self.has_content = True

    def _flush(self) -> None:
        if not self._pieces:
            return
        text = self._pieces[0] if len(self._pieces) == 1 else "".join(self._pieces)
        event = GenerationEvent()
        if self._kind == _TEXT:
            event.text_delta.text = text
        elif self._kind == _THINKING:
            event.thinking_delta.text = text
        else:
            event.tool_call_delta.arguments_json = text
        self._out.append(event)
        self._pieces.clear()

    def _whole(self, event: GenerationEvent) -> None:
        if self._live is not None and not self._advance():
            self.end()
        self._flush()
        self._kind = 0
        self._out.append(event)
        self.has_content = True


def makes_one_call(generation: pb.Generation) -> bool:
    """The caller wants one tool call per answer at most."""
    return generation.HasField("parallel_tool_calls") and not generation.parallel_tool_calls


def is_json(text: str) -> bool:
    """The text is one JSON value."""
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except errors.UNREADABLE:
        return False
    return True


def as_object(text: str) -> str:
    """Arguments as the text of one JSON object: an object as it is, JSON in a string unwrapped, nothing as "".

    Other JSON becomes `{"value": …}` and text that is not JSON `{"_raw": "…"}`, so that nothing the model said is lost.
    """
    text = text.strip()
    for _ in range(2):
        if text in {"", "null", "{}"}:
            return ""
        if text.startswith("{"):
            return text
        try:
            value = msgspec.json.decode(text)
        except errors.UNREADABLE:
            return msgspec.json.encode({"_raw": text}).decode()
        if not isinstance(value, str):
            break
        if not value.strip().startswith("{"):
            return msgspec.json.encode({"value": value}).decode() if value.strip() else ""
        text = value.strip()
    return f'{{"value":{text}}}'
