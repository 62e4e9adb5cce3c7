"""The request surface of Anthropic Messages as Structs: what is decoded, checked and documented.

Owns field names and types; refuses to translate. Members typed `Json` are carried or ignored without being read.
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

Json = Raw | UnsetType
Ratio = Annotated[float, Meta(ge=0, le=1)]


class ImageSource(Struct):
    """Where an image comes from. Without a `type` it is base64."""

    type: str = "base64"
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    file_id: str | None = None


class DocumentSource(Struct, omit_defaults=True):
    """Where a document comes from."""

    type: str
    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    file_id: str | None = None
    content: Json = UNSET


class SourcePart(Struct):
    """A block inside a document or a search result; other members are carried unread."""

    type: Literal["text", "image"]
    text: str | None = None


class Block(Struct, forbid_unknown_fields=True, tag_field="type", omit_defaults=True):
    """What every content block may carry. `cache_control` is accepted and ignored."""

    cache_control: Json = UNSET


class TextParam(Block, tag="text", kw_only=True):
    """Text."""

    text: str
    citations: Json = UNSET


class ImageParam(Block, tag="image", kw_only=True):
    """An image; dropped by profiles without vision."""

    source: ImageSource
    transformations: Json = UNSET


class DocumentParam(Block, tag="document", kw_only=True):
    """A document."""

    source: DocumentSource
    title: str | None = None
    context: str | None = None
    citations: Json = UNSET


class SearchResultParam(Block, tag="search_result", kw_only=True):
    """What a search of the caller's found."""

    source: str
    title: str
    content: Raw
    citations: Json = UNSET


class ThinkingParam(Block, tag="thinking", kw_only=True):
    """Reasoning of an earlier answer."""

    thinking: str
    signature: str | None = None


class RedactedThinkingParam(Block, tag="redacted_thinking", kw_only=True):
    """Reasoning that only its provider can read."""

    data: str


class ToolUseParam(Block, tag="tool_use", kw_only=True):
    """A call that the model made."""

    id: str
    name: str
    input: Raw
    caller: Json = UNSET
    toolset_name: Json = UNSET


class ToolResultParam(Block, tag="tool_result", kw_only=True):
    """What a tool answered."""

    tool_use_id: str
    content: "str | list[TextParam | ImageParam | DocumentParam | SearchResultParam] | None" = None
    is_error: bool | None = None
    toolset_name: Json = UNSET


BlockParam = (
    TextParam
    | ImageParam
    | DocumentParam
    | SearchResultParam
    | ThinkingParam
    | RedactedThinkingParam
    | ToolUseParam
    | ToolResultParam
)
STRUCTS: dict[str, type[Struct]] = {
    "text": TextParam,
    "image": ImageParam,
    "document": DocumentParam,
    "thinking": ThinkingParam,
    "redacted_thinking": RedactedThinkingParam,
    "search_result": SearchResultParam,
    "tool_use": ToolUseParam,
}


class LooseToolResult(Block, tag="tool_result", kw_only=True):
    """A tool result whose content is read block by block."""

    tool_use_id: str
    content: str | list[Raw] | None = None
    is_error: bool | None = None
    toolset_name: Json = UNSET


class MessageConfig(Struct):
    """Settings for the turn that begins with a system message."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class MessageParam(Struct, forbid_unknown_fields=True):
    """One turn. `system` may stand anywhere."""

    role: Literal["user", "assistant", "system"]
    content: str | list[BlockParam]
    clear_at: Literal["next_user_message", "never"] | None = None
    output_config: MessageConfig | None = None


class LooseMessage(Struct):
    """A turn whose content is read block by block."""

    role: str
    content: str | list[Raw]
    clear_at: Literal["next_user_message", "never"] | None = None
    output_config: MessageConfig | None = None


class ToolParam(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A tool of the caller."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    input_schema: Raw
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    defer_loading: bool | None = None
    cache_control: Json = UNSET
    input_examples: Json = UNSET
    eager_input_streaming: Json = UNSET
    allowed_callers: Json = UNSET


class ServerTool(Struct):
    """A tool that its provider runs: only its kind and name are read."""

    type: str | None = None
    name: str = ""


class ToolChoiceParam(Struct):
    """Which tool may be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(Struct):
    """Whether to reason."""

    type: Literal["enabled", "adaptive", "disabled", "between_tools"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Struct):
    """The form of the answer."""

    type: str
    schema: Json = UNSET


class OutputConfig(Struct):
    """How much effort to spend, and the form of the answer."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None
    task_budget: Json = UNSET


class Metadata(Struct, omit_defaults=True):
    """Who the request is for, in the caller's own words."""

    user_id: str | None = None


class Options(Struct, kw_only=True):
    """Every member of a Messages request but `max_tokens`, `messages`, `system` and `tools`."""

    model: Annotated[str, Meta(min_length=1)]
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: Ratio | None = None
    top_p: Ratio | None = None
    top_k: Annotated[int, Meta(ge=0, le=2147483647)] | None = None
    tool_choice: ToolChoiceParam | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    speed: Literal["standard", "fast"] | None = None
    inference_geo: str | None = None
    container: str | dict[str, Raw] | None = None
    mcp_servers: list[dict[str, Raw]] | None = None
    context_management: dict[str, Raw] | None = None
    diagnostics: dict[str, Raw] | None = None
    fallbacks: Json = UNSET
    fallback_credit_token: Json = UNSET
    billing_policy: Json = UNSET
    compaction: Json = UNSET
    thread: Json = UNSET
    cache_control: Json = UNSET


class MessagesRequest(Options, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/messages."""

    max_tokens: Annotated[int, Meta(ge=0, le=9007199254740991)]
    messages: list[MessageParam]
    system: str | list[TextParam] | None = None
    tools: list[ToolParam] | None = None


class CountTokensRequest(Options, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/messages/count_tokens."""

    messages: list[MessageParam]
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    system: str | list[TextParam] | None = None
    tools: list[ToolParam] | None = None


class LooseRequest(Options, kw_only=True):
    """A request of which the lists are read item by item."""

    max_tokens: Annotated[int, Meta(ge=0, le=9007199254740991)] | None = None
    messages: list[Raw]
    system: str | list[Raw] | None = None
    tools: list[Raw] | None = None


class CacheCreation(Struct):
    """Tokens written to a cache, by lifetime."""

    ephemeral_5m_input_tokens: int
    ephemeral_1h_input_tokens: int


class Usage(Struct):
    """What an answer used."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    cache_creation: CacheCreation
    output_tokens: int
    service_tier: str


class TextReply(Struct, tag_field="type", tag="text"):
    """Text of an answer."""

    text: str


class ThinkingReply(Struct, tag_field="type", tag="thinking"):
    """Reasoning of an answer."""

    thinking: str
    signature: str


class RedactedThinkingReply(Struct, tag_field="type", tag="redacted_thinking"):
    """Reasoning that only its provider can read."""

    data: str


class ToolUseReply(Struct, tag_field="type", tag="tool_use"):
    """A call of a tool."""

    id: str
    name: str
    input: dict[str, Raw]


class RefusalDetails(Struct, tag_field="type", tag="refusal"):
    """Why an answer was refused, if its upstream explains it."""

    category: str | None
    explanation: str | None


class MessageReply(Struct):
    """The answer of POST /v1/messages."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextReply | ThinkingReply | RedactedThinkingReply | ToolUseReply]
    stop_reason: str
    stop_sequence: str | None
    usage: Usage
    stop_details: RefusalDetails | None = None


class CountTokensReply(Struct):
    """The answer of POST /v1/messages/count_tokens."""

    input_tokens: int


class ErrorBody(Struct):
    """What went wrong."""

    type: str
    message: str


class ErrorReply(Struct):
    """Every failure of an Anthropic-shape route."""

    type: Literal["error"]
    error: ErrorBody
    request_id: str
