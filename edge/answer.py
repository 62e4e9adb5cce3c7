"""What an answer is to the pipeline, whichever dialect writes it: frames of a stream, or one reply at the end.

Owns the two Protocols and the facts that both need; refuses to know any dialect.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from mws.common.v1 import token_usage_pb2
from mws.inference.v1 import generation_pb2 as pb


@dataclass(frozen=True, slots=True)
class Head:
    """What is known before any content: our id for the call, when it came, what the caller called the model."""

    call_id: str  # UUIDv7 text
    created_s: int  # Unix seconds
    model: str
    estimated_input_tokens: int  # >= 1

    @property
    def digits(self) -> str:
        """The call id without its dashes, for ids in a dialect's own style."""
        return self.call_id.replace("-", "")


class AnswerStream(Protocol):
    """Turns events into the frames of one stream. One per answer, used once."""

    def note_started(self, started: pb.MessageStarted) -> None:
        """What the upstream said before its content; of use until `start` is called."""

    def start(self) -> bytes:
        """The first frames, which hold no content. They stand before everything that `feed` returns."""

    def feed(self, events: Iterable[pb.GenerationEvent]) -> bytes:
        """The frames of a batch of events; may be empty."""


class AnswerFold(Protocol):
    """Collects the events of one answer into a single reply body."""

    def feed(self, events: Iterable[pb.GenerationEvent]) -> None:
        """Takes a batch of events."""

    def reply(self) -> bytes:
        """The body, after `finished` was fed."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Usage with nothing left unknown: an unreported prompt is the estimate, any other unreported count zero."""

    input: int
    output: int
    cache_read: int
    cache_write_5m: int
    cache_write_1h: int
    reasoning: int | None

    @property
    def prompt(self) -> int:
        """Every prompt token, cached or not."""
        return self.input + self.cache_read + self.cache_write_5m + self.cache_write_1h


def counts_of(usage: token_usage_pb2.TokenUsage | None, estimated_input_tokens: int) -> Counts:
    """Reads usage as far as it is known."""
    if usage is None:
        return Counts(estimated_input_tokens, 0, 0, 0, 0, None)
    return Counts(
        usage.input_tokens if usage.HasField("input_tokens") else estimated_input_tokens,
        usage.output_tokens,
        usage.cache_read_tokens,
        usage.cache_write_5m_tokens,
        usage.cache_write_1h_tokens,
        usage.reasoning_tokens if usage.HasField("reasoning_tokens") else None,
    )
