"""The request surface of OpenAI Chat Completions as Structs: what is decoded, checked and documented.

Owns field names and types; refuses to translate. Members typed `Json` are carried or ignored without being read.
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

Json = Raw | UnsetType
Members = dict[str, Raw]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[int, Meta(ge=-100, le=100)] | Annotated[float, Meta(ge=-100, le=100)]


class Part(Struct, forbid_unknown_fields=True, tag_field="type"):
    """What every content part may carry."""

    prompt_cache_breakpoint: Json = UNSET
    cache_control: Json = UNSET


class TextPart(Part, tag="text", kw_only=True):
    """Text."""

    text: str


class RefusalPart(Part, tag="refusal", kw_only=True):
    """A refusal of an earlier answer."""

    refusal: str


class ImageUrl(Struct):
    """Where an image comes from: a `data:` URL or an address that the upstream fetches."""

    url: str
    detail: str | None = None


class ImagePart(Part, tag="image_url", kw_only=True):
    """An image; dropped by profiles without vision."""

    image_url: ImageUrl


class AudioSource(Struct):
    """Recorded speech as base64."""

    data: str
    format: Literal["wav", "mp3"]


class AudioPart(Part, tag="input_audio", kw_only=True):
    """Speech; reaches an upstream of the same dialect only."""

    input_audio: AudioSource


class FileSource(Struct):
    """A file: its content as a `data:` URL, or its id at the upstream."""

    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class FilePart(Part, tag="file", kw_only=True):
    """A document."""

    file: FileSource


PartParam = TextPart | RefusalPart | ImagePart | AudioPart | FilePart
STRUCTS: dict[str, type[Struct]] = {
    "text": TextPart,
    "refusal": RefusalPart,
    "image_url": ImagePart,
    "input_audio": AudioPart,
    "file": FilePart,
}


class FunctionCall(Struct):
    """A function that the model called. `arguments` is JSON text."""

    name: str
    arguments: str | None = None


class ToolCallParam(Struct, forbid_unknown_fields=True):
    """A tool call that the model made."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"
    index: Json = UNSET


class AnyToolCall(Struct):
    """A tool call of another kind: only what names it is read."""

    id: str = ""
    type: str = "function"


class MessageParam(Struct, forbid_unknown_fields=True):
    """One turn."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[PartParam] | None = None
    name: str | None = None
    tool_calls: list[ToolCallParam] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: Json = UNSET
    audio: Json = UNSET
    annotations: Json = UNSET


class LooseMessage(Struct):
    """A turn whose content and tool calls are read item by item."""

    role: str
    content: str | list[Raw] | None = None
    name: str | None = None
    tool_calls: list[Raw] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None
    refusal: str | None = None
    reasoning_content: str | None = None


class Function(Struct):
    """A function of the caller."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    description: str | None = None
    parameters: Json = UNSET
    strict: bool | None = None


class ToolParam(Struct, forbid_unknown_fields=True):
    """A tool of the caller."""

    type: str
    function: Function | None = None
    cache_control: Json = UNSET


class LooseTool(Struct):
    """A tool of any kind: only a function is read."""

    type: str
    function: Function | None = None


class NamedFunction(Struct):
    """The name of a function."""

    name: str


class AllowedTool(Struct):
    """A tool among those that a choice allows."""

    type: str
    function: NamedFunction | None = None
    custom: NamedFunction | None = None


class AllowedTools(Struct):
    """A choice among some of the tools."""

    mode: Literal["auto", "required"]
    tools: list[AllowedTool]


class ToolChoiceParam(Struct):
    """Which tool may be called."""

    type: str
    function: NamedFunction | None = None
    custom: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None


class StreamOptions(Struct):
    """What a stream holds besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(Struct):
    """A named JSON Schema."""

    name: str
    schema: Json = UNSET
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(Struct):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Options(Struct, kw_only=True):
    """Every member of a request but the lists."""

    model: str
    max_completion_tokens: Annotated[int, Meta(ge=0, le=9007199254740991)] | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=9007199254740991)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-9223372036854775808, le=9223372036854775807)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stop: str | list[str] | None = None
    tool_choice: str | ToolChoiceParam | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Function] | None = None
    function_call: str | NamedFunction | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    logit_bias: dict[str, Bias] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    audio: Members | None = None
    prediction: Members | None = None
    web_search_options: Members | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Members | None = None
    prompt_cache_retention: str | None = None
    moderation: Members | None = None
    top_k: Json = UNSET


class ChatRequest(Options, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /v1/chat/completions."""

    messages: list[MessageParam]
    tools: list[ToolParam] | None = None


class LooseRequest(Options, kw_only=True):
    """A request of which the lists are read item by item."""

    messages: list[Raw]
    tools: list[Raw] | None = None


class PromptDetails(Struct):
    """Parts of the prompt."""

    cached_tokens: int
    audio_tokens: int


class CompletionDetails(Struct):
    """Parts of the answer."""

    reasoning_tokens: int
    audio_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(Struct):
    """What an answer used."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class CustomCall(Struct):
    """A call of a custom tool. `input` is free text."""

    name: str
    input: str


class ReplyToolCall(Struct):
    """A tool call of an answer: of a function, or of a custom tool of the caller."""

    id: str
    type: Literal["function", "custom"]
    function: FunctionCall | UnsetType = UNSET
    custom: CustomCall | UnsetType = UNSET


class ReplyMessage(Struct):
    """The answer's message."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    annotations: list[Raw]
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ReplyToolCall] | UnsetType = UNSET
    function_call: FunctionCall | UnsetType = UNSET


class Choice(Struct):
    """One answer; there is one."""

    index: int
    message: ReplyMessage
    logprobs: None
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class ChatReply(Struct):
    """The answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    service_tier: str | None
    system_fingerprint: str | None


class ErrorBody(Struct):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Struct):
    """Every failure of an OpenAI-shape route."""

    error: ErrorBody
