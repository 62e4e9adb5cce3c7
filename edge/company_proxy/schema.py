"""The company proxy's bodies as pydantic models: what is checked, and what its page documents.

Owns the members that this surface looks at; everything else is allowed, and forwarded as it came.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

_MODEL = Field(min_length=1, max_length=256, examples=["claude-opus-4-6"])


def _printable(name: str) -> str:
    if not name.isprintable():
        raise PydanticCustomError("string_not_printable", "String should have printable characters only")
    return name


ApplicationName = Annotated[str, Field(max_length=128), AfterValidator(_printable)]


class _Open(BaseModel):
    """A body with members that are not named here."""

    model_config = ConfigDict(extra="allow")


# ---- requests ----


class TextBlock(_Open):
    """Text."""

    type: Literal["text"]
    text: str


class ImageBlock(_Open):
    """An image."""

    type: Literal["image"]
    source: dict[str, Any]


class DocumentBlock(_Open):
    """A document."""

    type: Literal["document"]
    source: dict[str, Any]


class ToolUseBlock(_Open):
    """A call that the model made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(_Open):
    """What a tool answered."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[dict[str, Any]] | None = None
    is_error: bool | None = None


class ThinkingBlock(_Open):
    """Reasoning of an earlier answer."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class RedactedThinkingBlock(_Open):
    """Reasoning that only its provider can read."""

    type: Literal["redacted_thinking"]
    data: str


class OtherBlock(_Open):
    """Any other block; the upstream judges it."""

    type: str


_NAMED_BLOCKS = frozenset({"text", "image", "document", "tool_use", "tool_result", "thinking", "redacted_thinking"})


def _block_kind(block: object) -> str:
    kind = block.get("type") if isinstance(block, dict) else getattr(block, "type", None)
    return kind if isinstance(kind, str) and kind in _NAMED_BLOCKS else "other"


def _text_or_blocks(value: object) -> str:
    return "text" if isinstance(value, str) else "blocks"


Block = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ImageBlock, Tag("image")]
    | Annotated[DocumentBlock, Tag("document")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")]
    | Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[RedactedThinkingBlock, Tag("redacted_thinking")]
    | Annotated[OtherBlock, Tag("other")],
    Discriminator(_block_kind),
]


class Message(_Open):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        Annotated[str, Tag("text")] | Annotated[list[Block], Tag("blocks")], Discriminator(_text_or_blocks)
    ]


class Thinking(_Open):
    """How the model should reason."""

    type: str
    budget_tokens: int | None = Field(default=None, ge=1024)


class ToolChoice(_Open):
    """Which tool may be called."""

    type: str
    name: str | None = None


class Tool(_Open):
    """A tool."""

    name: str | None = Field(default=None, min_length=1, max_length=128)
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class MessagesRequest(_Open):
    """Anthropic's Messages request. Members that are not named here are forwarded as well."""

    model: str = _MODEL
    max_tokens: int = Field(ge=1, le=1_000_000_000, examples=[1024])
    messages: list[Message] = Field(min_length=1, max_length=100_000)
    system: (
        Annotated[
            Annotated[str, Tag("text")] | Annotated[list[TextBlock], Tag("blocks")], Discriminator(_text_or_blocks)
        ]
        | None
    ) = None
    metadata: dict[str, Any] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=1)
    thinking: Thinking | None = None
    tool_choice: ToolChoice | None = None
    tools: list[Tool] | None = None
    top_k: int | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, ge=0, le=1)


# ---- answers ----


class CacheCreation(_Open):
    """Tokens written to caches, by the caches' lives."""

    ephemeral_1h_input_tokens: int | None
    ephemeral_5m_input_tokens: int | None


class Usage(_Open):
    """What was used, as the upstream reports it."""

    cache_creation: CacheCreation | None
    cache_creation_input_tokens: int | None
    cache_read_input_tokens: int | None
    inference_geo: str | None
    input_tokens: int | None
    output_tokens: int | None
    server_tool_use: dict[str, Any] | None
    service_tier: str | None


class MessageReply(_Open):
    """A message: the upstream's, with its members in fixed order and null where it has none."""

    id: str | None
    content: list[dict[str, Any]]
    model: str | None
    role: str | None
    stop_reason: str | None
    stop_sequence: str | None
    type: str | None
    usage: Usage | None


class ErrorReply(BaseModel):
    """A failure."""

    detail: str


class Problem(BaseModel):
    """One thing that breaks the schema."""

    loc: list[str | int]
    msg: str
    type: str
    input: Any = None
    ctx: dict[str, Any] | None = None


class ProblemsReply(BaseModel):
    """A request that breaks the schema."""

    detail: list[Problem]
