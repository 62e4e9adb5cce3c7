"""One running answer: what its upstream said so far, how much of it was handed on, and its usage.

Owns the bookkeeping of a relay; refuses to wait, to call and to decide. Events pass through as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mws.common.v1.token_usage_pb2 import TokenUsage
from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1.generation_pb2 import GenerationEvent
from mws.inference.v1.inference_service_pb2 import GenerateResponse

from services.routing_and_inference.bounding import TextMeter, estimated_tokens, output_bound_tokens
from services.routing_and_inference.ports import FailureKind, UpstreamFailure
from services.routing_and_inference.replaying import Fold
from services.routing_and_inference.rescue import Overlap, Said

# The text of an event, as far as it counts as output.
_TEXT_OF: Mapping[str, Callable[[Any], str]] = {
    "text_delta": lambda event: event.text_delta.text,
    "thinking_delta": lambda event: event.thinking_delta.text,
    "tool_call_started": lambda event: event.tool_call_started.name,
    "tool_call_delta": lambda event: event.tool_call_delta.arguments_json,
    "redacted_thinking": lambda event: event.redacted_thinking.data,
    "opaque_block": lambda event: event.opaque_block.json,
}


class Answer:
    """`begin` for every attempt, `take` for every batch of it."""

    def __init__(self, estimated_input_tokens: int, *, is_streamed: bool, fold: Fold | None = None) -> None:
        self._input_tokens = estimated_input_tokens
        self._is_streamed = is_streamed
        self._fold = fold  # of an answer that is to be kept
        self.upstream = ""
        self.attempt = 0
        self.was_accepted = False
        self.has_delivered = False
        self.is_balance_cut = False
        self.is_rescued = False  # it broke off after content, and went on
        self.said = Said()
        self.finished: pb.Finished | None = None
        self.kept: list[GenerationEvent] = []  # of an answer that leaves in one piece
        self._text = TextMeter()
        self._started: GenerationEvent | None = None
        self._lead: GenerationEvent | None = None  # `message_started`, until it has left
        self._overlap: Overlap | None = None  # of an attempt that goes on with what has left

    def begin(self, upstream: str) -> int:
        """Another upstream is tried; what the one before said is forgotten. Returns the number of the attempt."""
        self.upstream = upstream
        self.attempt += 1
        self.finished = self._started = self._lead = None
        self.kept = []
        self.said = Said()
        self._fold = None if self._fold is None else Fold()
        self._text = TextMeter()
        return self.attempt

    def go_on(self, upstream: str, overlap: Overlap) -> int:
        """Another attempt goes on where the one before broke off. Returns the number of the attempt."""
        self.upstream = upstream
        self.attempt += 1
        self.is_rescued = True
        self.finished = None
        self._overlap = overlap
        return self.attempt

    def take(self, batch: Sequence[GenerationEvent]) -> Sequence[GenerationEvent]:
        """What may leave of a batch: `message_started` only with the first content, `finished` not at all."""
        if self._overlap is not None:
            batch = self._overlap.remove(batch)
        content: list[GenerationEvent] = []
        for event in batch:
            kind = event.WhichOneof("kind")
            if kind == "message_started":
                self._started = self._lead = event
                self.was_accepted = True
            elif kind == "finished":
                self.finished = event.finished
            elif kind is not None:
                self._count(kind, event)
                content.append(event)
        if content and self._lead is not None:
            content.insert(0, self._lead)
            self._lead = None
        if not self._is_streamed:
            self.kept += content
            return ()
        self.has_delivered = self.has_delivered or bool(content)
        return content

    def _count(self, kind: str, event: GenerationEvent) -> None:
        text_of = _TEXT_OF.get(kind)
        text = "" if text_of is None else text_of(event)
        if text:
            self._text.add(text)
        if self._is_streamed:
            self.said.note(kind, text)
        if self._fold is not None:
            self._fold.add(event)

    def require_end(self) -> None:
        """Raises UpstreamFailure if the upstream stopped without saying so."""
        if self.finished is None and not self.is_balance_cut:
            raise UpstreamFailure(FailureKind.CUT, retryable=True, accepted=self.was_accepted)

    def remainder(self) -> list[GenerationEvent]:
        """What of the whole answer has not left, but for `finished`."""
        events = self.kept
        if self._lead is not None:
            events.append(self._lead)
            self._lead = None
        self.has_delivered = True
        return events

    @property
    def bound_tokens(self) -> int:
        """The most tokens that the answer can have so far."""
        return output_bound_tokens(self._text.ascii_characters, self._text.other_characters)

    def delivered(self) -> TokenUsage:
        """What was handed to the transport, at 4 characters per token."""
        output_tokens = estimated_tokens(self._text.characters) if self.has_delivered else 0
        return TokenUsage(input_tokens=self._input_tokens, output_tokens=output_tokens)

    def reported(self) -> TokenUsage | None:
        """What the upstream reported. Before its end only the prompt's counts are final."""
        if self.is_rescued:
            return None  # each attempt knows of its own part alone
        if self.finished is not None:
            return self.finished.usage if self.finished.HasField("usage") else None
        if self._started is None or not self._started.message_started.HasField("usage"):
            return None
        usage = TokenUsage()
        usage.CopyFrom(self._started.message_started.usage)
        usage.ClearField("output_tokens")
        usage.ClearField("reasoning_tokens")
        return usage

    def whole(self) -> GenerateResponse | None:
        """The whole answer in one response, for an answer that is to be kept and came to its end."""
        if self._fold is None:
            return None
        response = GenerateResponse()
        if self._started is not None:
            response.events.append(self._started)
        response.events.extend(self._fold.whole())
        self.finish(response.events.add().finished, None)
        return response

    def finish(self, finished: pb.Finished, charged_nano_usd: int | None) -> None:
        """Writes the end of the answer, for its caller: input and output are always counted."""
        if self.is_balance_cut:
            finished.reason = pb.FINISH_REASON_LENGTH
            finished.balance_cut = True
            finished.usage_estimated = True
            finished.usage.CopyFrom(self.delivered())
        else:
            assert self.finished is not None
            finished.CopyFrom(self.finished)
            if self.is_rescued:
                finished.usage.Clear()
            finished.usage_estimated = self._complete(finished.usage)
        if charged_nano_usd is not None:
            finished.charged_nano_usd = charged_nano_usd

    def _complete(self, usage: TokenUsage) -> bool:
        """Fills in the counts that were not reported; whether there were any."""
        if usage.HasField("input_tokens") and usage.HasField("output_tokens"):
            return False
        delivered = self.delivered()
        if not usage.HasField("input_tokens"):
            cached = usage.cache_read_tokens + usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
            usage.input_tokens = max(0, delivered.input_tokens - cached)
        if not usage.HasField("output_tokens"):
            usage.output_tokens = delivered.output_tokens
        return True
