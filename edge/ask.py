"""A request that a dialect has read: the neutral generation, and what the answer's own form depends on.

Owns that one value; refuses to read or write any dialect.
"""

from dataclasses import dataclass, field

from mws.inference.v1 import generation_pb2 as pb


@dataclass(frozen=True, slots=True)
class Ask:
    """What was asked for."""

    model: str
    generation: pb.Generation
    dialect: pb.Dialect.ValueType
    include_usage: bool = False  # OpenAI: the stream ends with a usage chunk
    wants_function_call: bool = False  # OpenAI: the caller speaks the legacy `functions`
    shows_thinking: bool = True  # Anthropic: the caller asked to see reasoning blocks
    omits_thinking_text: bool = False  # Anthropic: reasoning blocks without their text

    @property
    def generates_nothing(self) -> bool:
        """Anthropic's `max_tokens: 0`: answered here."""
        return self.generation.HasField("max_output_tokens") and self.generation.max_output_tokens == 0


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole HTTP answer, without the headers that every answer carries."""

    status: int
    body: bytes
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
