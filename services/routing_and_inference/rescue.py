"""How an answer that broke off after content may go on at another upstream, or at the same one, without a seam.

Pure: owns when a continuation is certain and what of it has left already; refuses to call and to choose upstreams.

Two ways are certain. *Continue*: an upstream that takes a prefill writes on from the text that has left. *Restart*: at
temperature 0 the same answer comes again; what has left must come first, character by character, and is suppressed. An
answer of which a tool call has left is never continued: half of its arguments may be with the caller.
"""

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec
from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1.generation_pb2 import GenerationEvent

from services.routing_and_inference.bounding import estimated_tokens
from services.routing_and_inference.catalog import Profile, UpstreamTarget
from services.routing_and_inference.ports import FailureKind, UpstreamFailure

_TAKES_PREFILL: Final = {"anthropic": True, "simulated": True}
"""By dialect, where the option `prefill` does not say. The chat completions API does not promise to write on."""

_SHORTEST_ECHO = 12  # characters: less may well be said twice on purpose
_COMPACT_AT = 256  # pieces


class Said:
    """The text of an answer that has left, and whether anything else has."""

    __slots__ = ("_pieces", "has_signature", "is_plain")

    def __init__(self) -> None:
        self._pieces: dict[str, list[str]] = {"text_delta": [], "thinking_delta": []}
        self.has_signature = False  # of the thinking
        self.is_plain = True

    def note(self, kind: str, text: str) -> None:
        """An event of this kind leaves."""
        pieces = self._pieces.get(kind)
        if pieces is None:
            self.has_signature = self.has_signature or kind == "thinking_signature"
            self.is_plain = self.is_plain and kind == "thinking_signature"
            return
        pieces.append(text)
        if len(pieces) > _COMPACT_AT:
            pieces[:] = ("".join(pieces),)

    def of(self, kind: str) -> str:
        """All text of a kind."""
        return "".join(self._pieces[kind])


class Overlap(Protocol):
    """Takes away what of a further attempt's answer has left already."""

    def remove(self, events: Sequence[GenerationEvent]) -> list[GenerationEvent]:
        """What of a batch is new. Raises UpstreamFailure if the answer contradicts what has left."""


class Continuation(msgspec.Struct, frozen=True, eq=False):
    """What to ask of the next upstream, and how to read it."""

    generation: pb.Generation
    overlap: Overlap
    is_prefilled: bool


def continuation(
    generation: pb.Generation, said: Said, profile: Profile, target: UpstreamTarget, *, may_prefill: bool
) -> Continuation | None:
    """How `target` can go on with an answer; None: not with certainty. `generation` is left as it is."""
    if not said.is_plain:
        return None
    if may_prefill and _can_prefill(generation, said, profile, target):
        text = said.of("text_delta")
        return Continuation(_prefilled(generation, text), _Seam(text), is_prefilled=True)
    if generation.HasField("temperature") and generation.temperature == 0:
        return Continuation(generation, _Repetition(said), is_prefilled=False)
    return None


def _can_prefill(generation: pb.Generation, said: Said, profile: Profile, target: UpstreamTarget) -> bool:
    takes_it = target.options.get("prefill", _TAKES_PREFILL.get(target.dialect, False))
    return (
        profile.capabilities.prefill
        and bool(takes_it)
        and bool(said.of("text_delta").strip())
        and not said.of("thinking_delta")
        and generation.reasoning.mode not in (pb.Reasoning.MODE_ENABLED, pb.Reasoning.MODE_ADAPTIVE)
        and not generation.HasField("response_format")
    )


def _prefilled(generation: pb.Generation, text: str) -> pb.Generation:
    going_on = pb.Generation()
    going_on.CopyFrom(generation)
    if going_on.messages[-1].role != pb.ROLE_ASSISTANT:
        going_on.messages.add(role=pb.ROLE_ASSISTANT)
    content = going_on.messages[-1].content
    # An upstream refuses a prefill that ends in white space: it is known to have left, and need not be told.
    kept = text.rstrip()
    if content and content[-1].HasField("text"):
        content[-1].text.text += kept
    else:
        content.add().text.text = kept
    if going_on.HasField("max_output_tokens"):
        going_on.max_output_tokens = max(1, going_on.max_output_tokens - estimated_tokens(len(text)))
    return going_on


def _contradiction() -> UpstreamFailure:
    return UpstreamFailure(FailureKind.CONTRADICTION, retryable=False, accepted=True)


class _Repetition:
    """The whole answer again: all that has left must come first."""

    def __init__(self, said: Said) -> None:
        self._missing = {kind: said.of(kind) for kind in ("thinking_delta", "text_delta")}
        self._has_signature = said.has_signature

    def remove(self, events: Sequence[GenerationEvent]) -> list[GenerationEvent]:
        fresh = []
        for event in events:
            kind = event.WhichOneof("kind")
            if kind == "message_started":
                continue
            if kind not in self._missing:
                if not self._may_leave(kind):
                    continue
                fresh.append(event)
            elif rest := self._rest(kind, _text_of(event)):
                fresh.append(event if rest == _text_of(event) else _with_text(kind, rest))
        return fresh

    def _rest(self, kind: str, text: str) -> str:
        if kind == "text_delta" and self._missing["thinking_delta"]:
            raise _contradiction()
        missing = self._missing[kind]
        common = min(len(text), len(missing))
        if text[:common] != missing[:common]:
            raise _contradiction()
        self._missing[kind] = missing[len(text) :]
        fresh = text[len(missing) :]
        if fresh and kind == "thinking_delta" and self._missing["text_delta"]:
            raise _contradiction()
        return fresh

    def _may_leave(self, kind: str | None) -> bool:
        """Whether an event without text is new."""
        if kind == "thinking_signature" and self._has_signature:
            return False
        if any(self._missing.values()):
            raise _contradiction()
        return True


class _Seam:
    """The answer goes on: takes away white space at the seam that has left, and an echo of the prefill."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._white = text[len(text.rstrip()) :]
        self._held = ""  # the beginning of the continuation, as long as it may be an echo
        self._is_over = False

    def remove(self, events: Sequence[GenerationEvent]) -> list[GenerationEvent]:
        if self._is_over:
            return list(events)
        fresh: list[GenerationEvent] = []
        for event in events:
            kind = event.WhichOneof("kind")
            if kind == "message_started":
                continue
            if kind == "text_delta" and not self._is_over:
                if rest := self._rest(event.text_delta.text):
                    fresh.append(_with_text("text_delta", rest))
                continue
            if not self._is_over and (held := self._released()):
                fresh.append(_with_text("text_delta", held))
            fresh.append(event)
        return fresh

    def _rest(self, piece: str) -> str:
        self._held += piece
        if self._may_be_echo():
            return ""
        if len(self._text) >= _SHORTEST_ECHO and self._held.startswith(self._text.rstrip()):
            self._held = self._held[len(self._text.rstrip()) :]
        if not self._held or (self._white and self._white.startswith(self._held)):
            return ""
        return self._released()

    def _may_be_echo(self) -> bool:
        text = self._text.rstrip()
        return len(self._text) >= _SHORTEST_ECHO and len(self._held) < len(text) and text.startswith(self._held)

    def _released(self) -> str:
        self._is_over = True
        seam = 0
        for has_left, comes in zip(self._white, self._held, strict=False):
            if has_left != comes:
                break
            seam += 1
        return self._held[seam:]


def _text_of(event: GenerationEvent) -> str:
    text: str = event.text_delta.text if event.HasField("text_delta") else event.thinking_delta.text
    return text


def _with_text(kind: str, text: str) -> GenerationEvent:
    event = GenerationEvent()
    if kind == "text_delta":
        event.text_delta.text = text
    else:
        event.thinking_delta.text = text
    return event
