"""Chat Completions requests to the neutral generation: pure, one pass when the body holds only what the Structs name.

Owns the translation of everything but turns and tools; refuses to know models, limits or transports.
"""

from collections.abc import Sequence

import msgspec
from msgspec import Raw
from mws.inference.v1 import generation_pb2 as pb

from edge.ask import Ask
from edge.decoding import decode, fields_of, is_set, text_of
from edge.openai import schema
from edge.openai.refusals import CodedFieldError, refuse_unserved
from edge.openai.tools import add_functions, add_tools, allow_only, set_function_choice, set_tool_choice
from edge.openai.turns import Turns
from edge.problems import BadFieldError, bad_value, missing

Request = schema.ChatRequest | schema.LooseRequest

_strict = msgspec.json.Decoder(schema.ChatRequest)
_loose = msgspec.json.Decoder(schema.LooseRequest)
_encode = msgspec.json.Encoder().encode
_top_k = msgspec.json.Decoder(int)

_KNOWN = frozenset(schema.LooseRequest.__struct_encode_fields__)
# Named by the schema, and of use to an upstream of the same dialect only: it takes what its allow list has.
_FORWARDED = (
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "user",
    "metadata",
    "store",
    "service_tier",
    "verbosity",
    "prediction",
    "web_search_options",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "moderation",
)
_NUMBERS = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty")
_MESSAGES_MAX = 100_000


def read_chat(body: bytes) -> Ask:
    """Reads the body of POST /v1/chat/completions. Raises BadFieldError."""
    generation = pb.Generation()
    try:
        request: Request = _strict.decode(body)
    except msgspec.ValidationError:
        request = decode(_loose, body)
        _forward_unknown(generation, body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadFieldError((), "json", "The request body is not valid JSON") from None
    refuse_unserved(request)
    _set_options(generation, request)
    _set_extras(generation, request)
    _set_format(generation, request.response_format)
    _forward_named(generation, request)
    _add_turns(generation, request)
    _set_tools(generation, request)
    options = request.stream_options
    return Ask(
        request.model,
        generation,
        pb.DIALECT_OPENAI,
        include_usage=bool(request.stream and options is not None and options.include_usage),
        wants_function_call=bool(request.functions) and not request.tools,
        shows_thinking=request.reasoning_effort != "none",
    )


def _set_options(generation: pb.Generation, request: Request) -> None:
    most = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    if most is not None:
        generation.max_output_tokens = most
    if request.stream:
        generation.stream = True
    for name in _NUMBERS:
        value = getattr(request, name)
        if value is not None:
            setattr(generation, name, value)
    if request.stop:
        stops = [request.stop] if isinstance(request.stop, str) else request.stop
        generation.stop_sequences.extend(stop for stop in stops if stop)


def _set_extras(generation: pb.Generation, request: Request) -> None:
    if request.reasoning_effort is not None:
        generation.reasoning.effort = request.reasoning_effort
        if request.reasoning_effort == "none":
            generation.reasoning.mode = pb.Reasoning.MODE_DISABLED
    if request.top_k is not msgspec.UNSET and is_set(request.top_k):
        top_k = decode(_top_k, request.top_k, ("top_k",))
        if 0 < top_k < 2**31:  # 0 and -1 mean "off" to servers that know it
            generation.top_k = top_k


def _set_format(generation: pb.Generation, chosen: schema.ResponseFormat | None) -> None:
    if chosen is None or chosen.type == "text":
        return
    if chosen.type == "json_object":
        generation.response_format.json_object.SetInParent()
        return
    if chosen.json_schema is None:
        raise missing(("response_format", "json_schema"))
    wanted = chosen.json_schema
    target = generation.response_format.json_schema
    target.name = wanted.name
    target.description = wanted.description or ""
    if wanted.strict is not None:
        target.strict = wanted.strict
    target.schema_json = _schema_text(wanted.schema)


def _schema_text(schema_json: schema.Json) -> str:
    if not isinstance(schema_json, Raw):
        raise missing(("response_format", "json_schema", "schema"))
    if bytes(schema_json)[:1] != b"{":
        raise bad_value(("response_format", "json_schema", "schema"), "Input should be a JSON Schema object")
    return text_of(schema_json)


def _forward_named(generation: pb.Generation, request: Request) -> None:
    for name in _FORWARDED:
        value = getattr(request, name)
        if value is not None and value != {}:
            generation.extra_fields_json[name] = _encode(value).decode()


def _forward_unknown(generation: pb.Generation, body: bytes) -> None:
    for name, value in fields_of(body).items():
        if name not in _KNOWN:
            generation.extra_fields_json[name] = text_of(value)


def _add_turns(generation: pb.Generation, request: Request) -> None:
    if not request.messages:
        raise CodedFieldError(
            ("messages",), "Invalid 'messages': empty array. Expected an array with minimum length 1.", "empty_array"
        )
    if len(request.messages) > _MESSAGES_MAX:
        raise bad_value(("messages",), f"at most {_MESSAGES_MAX} messages are accepted")
    turns = Turns(generation)
    items: Sequence[schema.MessageParam | Raw] = request.messages
    for at, item in enumerate(items):
        turns.add(item, at)


def _set_tools(generation: pb.Generation, request: Request) -> None:
    if request.tools:
        add_tools(generation, request.tools)
        choice = request.tool_choice
        if isinstance(choice, schema.ToolChoiceParam) and choice.allowed_tools is not None:
            allow_only(generation, choice.allowed_tools)
        else:
            set_tool_choice(generation, choice)
    elif request.functions:
        add_functions(generation, request.functions)
        set_function_choice(generation, request.function_call)
        generation.parallel_tool_calls = False  # the legacy answer has room for one call
    if generation.tools and request.parallel_tool_calls is not None:
        generation.parallel_tool_calls = request.parallel_tool_calls
