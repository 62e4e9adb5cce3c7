"""Answers that pass through in their upstream's own words: the port that brings them, and how far one has come.

Owns the bookkeeping of a pass-through; refuses to read the words (the adapters do) and to wait.
"""

import enum
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

import msgspec
from mws.common.v1.token_usage_pb2 import TokenUsage
from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1.generation_pb2 import GenerationEvent

from services.routing_and_inference.bounding import TextMeter, estimated_tokens
from services.routing_and_inference.catalog import UpstreamTarget
from services.routing_and_inference.ports import FailureKind, UpstreamFailure


class PieceKind(enum.Enum):
    """What a piece is to the life of its call."""

    LEAD = "lead"  # says nothing by itself; while there is no more, another upstream may still answer
    CONTENT = "content"
    END = "end"  # the answer is whole with it


class NativePiece(msgspec.Struct, frozen=True, eq=False):
    """A piece of an answer. `usage`: all counts so far, if this piece reported any. `text`: what of it is output."""

    event: GenerationEvent  # its `native_event`
    kind: PieceKind
    text: str = ""
    usage: TokenUsage | None = None
    reason: "pb.FinishReason.ValueType" = pb.FINISH_REASON_UNSPECIFIED


class NativeAttempt(msgspec.Struct, frozen=True, eq=False):
    """One attempt to forward a request. `body` is written for the target already."""

    call_id: str
    attempt: int  # from 1
    target: UpstreamTarget
    body: bytes
    is_stream: bool
    version: str = ""  # what the caller stated about the dialect; empty: nothing
    betas: str = ""


NativeBatches = AsyncGenerator[Sequence[NativePiece], None]


class NativeUpstream(Protocol):
    """A dialect whose answers pass through."""

    def forward(self, attempt: NativeAttempt) -> NativeBatches:
        """Calls the upstream once, as an async generator of non-empty batches; the last piece of an answer is its END.

        Raises UpstreamFailure; whatever else it raises is a defect. Closing the generator, or cancelling it, cancels
        the HTTP call at once.
        """


class NativeAnswer:
    """`begin` for every attempt, `take` for every batch of it."""

    def __init__(self, estimated_input_tokens: int, *, is_kept: bool = False) -> None:
        self._is_kept = is_kept
        self.kept: list[GenerationEvent] = []  # all that has left, of an answer that is to be kept
        self._input_tokens = estimated_input_tokens
        self.upstream = ""
        self.attempt = 0
        self.was_accepted = False
        self.has_delivered = False
        self._forget()

    def _forget(self) -> None:
        self._lead: list[GenerationEvent] = []
        self._end: GenerationEvent | None = None
        self._text = TextMeter()
        self._usage: TokenUsage | None = None
        self._reason = pb.FINISH_REASON_STOP

    def begin(self, upstream: str) -> int:
        """Another upstream is tried; what the one before said is forgotten. Returns the number of the attempt."""
        self.upstream = upstream
        self.attempt += 1
        self._forget()
        return self.attempt

    def take(self, batch: Sequence[NativePiece]) -> list[GenerationEvent]:
        """What may leave of a batch: nothing before content has come, and the end not at all."""
        self.was_accepted = True
        had_content = False
        for piece in batch:
            self._note(piece)
            if piece.kind is PieceKind.END:
                self._end = piece.event
                continue
            had_content = had_content or piece.kind is PieceKind.CONTENT
            self._lead.append(piece.event)
        if not self.has_delivered and not had_content:
            return []
        if not self.has_delivered:
            self._lead.insert(0, self._started())
        self.has_delivered = True
        leaving, self._lead = self._lead, []
        return self._keep(leaving)

    def _keep(self, leaving: list[GenerationEvent]) -> list[GenerationEvent]:
        if self._is_kept:
            self.kept += leaving
        return leaving

    def _note(self, piece: NativePiece) -> None:
        self._text.add(piece.text)
        if piece.usage is not None:
            self._usage = piece.usage
        if piece.reason != pb.FINISH_REASON_UNSPECIFIED:
            self._reason = piece.reason

    def _started(self) -> GenerationEvent:
        event = GenerationEvent()
        event.message_started.upstream = self.upstream
        event.message_started.attempt = self.attempt
        return event

    def require_end(self) -> None:
        """Raises UpstreamFailure if the upstream stopped without saying so."""
        if self._end is None:
            raise UpstreamFailure(FailureKind.CUT, retryable=True, accepted=self.was_accepted)

    def remainder(self) -> list[GenerationEvent]:
        """What of the whole answer has not left, its end included."""
        assert self._end is not None
        events = [*self._lead, self._end]
        if not self.has_delivered:
            events.insert(0, self._started())
        self.has_delivered = True
        return self._keep(events)

    @property
    def was_refused(self) -> bool:
        """The model refused."""
        return self._reason == pb.FINISH_REASON_REFUSAL

    def delivered(self) -> TokenUsage:
        """What was handed to the transport, at 4 characters per token."""
        output_tokens = estimated_tokens(self._text.characters) if self.has_delivered else 0
        return TokenUsage(input_tokens=self._input_tokens, output_tokens=output_tokens)

    def reported(self) -> TokenUsage | None:
        """What the upstream reported. Before its end only the prompt's counts are final."""
        if self._usage is None or self._end is not None:
            return self._usage
        usage = TokenUsage()
        usage.CopyFrom(self._usage)
        usage.ClearField("output_tokens")
        usage.ClearField("reasoning_tokens")
        return usage

    def finish(self, finished: pb.Finished, charged_nano_usd: int | None) -> None:
        """Writes the end of the answer: input and output are always counted."""
        finished.reason = self._reason
        finished.usage.CopyFrom(self.delivered())
        if self._usage is not None:
            finished.usage.MergeFrom(self._usage)
        counted = (
            self._usage is not None and self._usage.HasField("input_tokens") and self._usage.HasField("output_tokens")
        )
        finished.usage_estimated = not counted
        if charged_nano_usd is not None:
            finished.charged_nano_usd = charged_nano_usd
