"""Messages requests to the neutral generation: pure, one pass when the body holds only what the Structs name.

Owns the translation and its checks; refuses to know models, limits or transports.
"""

from collections.abc import Sequence

import msgspec
from msgspec import Raw
from mws.inference.v1 import generation_pb2 as pb

from edge.anthropic import schema
from edge.anthropic.blocks import add_block, add_block_tolerantly
from edge.anthropic.tools import add_tools, referenced_tools, set_tool_choice
from edge.ask import Ask
from edge.decoding import decode, fields_of, is_set, text_of
from edge.problems import BadFieldError, bad_value, missing

Request = schema.MessagesRequest | schema.CountTokensRequest | schema.LooseRequest

_messages = msgspec.json.Decoder(schema.MessagesRequest)
_count_tokens = msgspec.json.Decoder(schema.CountTokensRequest)
_loose = msgspec.json.Decoder(schema.LooseRequest)
_loose_message = msgspec.json.Decoder(schema.LooseMessage)
_system_block = msgspec.json.Decoder(schema.TextParam)
_encode = msgspec.json.Encoder().encode

_KNOWN = frozenset(schema.LooseRequest.__struct_encode_fields__)
# Named by the schema, and of use to an upstream of the same dialect only: it takes what its allow list has.
_FORWARDED = ("container", "context_management", "diagnostics", "inference_geo", "mcp_servers", "speed")
# Claude Code puts a line that changes with every request in front of the prompt; it would defeat every prefix cache.
_BILLING_LINE = "x-anthropic-billing-header"
_ROLES = {
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
    "system": pb.ROLE_SYSTEM,
    "ctx": pb.ROLE_USER,  # stray roles of some Claude Code builds
    "msg": pb.ROLE_USER,
}
_MODES = {
    "enabled": pb.Reasoning.MODE_ENABLED,
    "between_tools": pb.Reasoning.MODE_ENABLED,
    "adaptive": pb.Reasoning.MODE_ADAPTIVE,
    "disabled": pb.Reasoning.MODE_DISABLED,
}
_MESSAGES_MAX = 100_000
_LARGEST_COUNT = 2**53 - 1  # of tokens; no more than this is ever meant


def read_messages(body: bytes) -> Ask:
    """Reads the body of POST /v1/messages. Raises BadFieldError."""
    return _read(body, _messages, needs_max_tokens=True)


def read_count_tokens(body: bytes) -> Ask:
    """Reads the body of POST /v1/messages/count_tokens. Raises BadFieldError."""
    return _read(body, _count_tokens, needs_max_tokens=False)


def _read(
    body: bytes,
    strict: "msgspec.json.Decoder[schema.MessagesRequest] | msgspec.json.Decoder[schema.CountTokensRequest]",
    *,
    needs_max_tokens: bool,
) -> Ask:
    generation = pb.Generation()
    try:
        request: Request = strict.decode(body)
    except msgspec.ValidationError:
        request = decode(_loose, body)
        if needs_max_tokens and request.max_tokens is None:
            raise missing(("max_tokens",)) from None
        _forward_unknown(generation, body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadFieldError((), "json", "The request body is not valid JSON") from None
    _set_options(generation, request)
    _set_reasoning(generation, request)
    _set_format(generation, request)
    _forward_named(generation, request)
    _add_system(generation, request.system)
    _add_messages(generation, request)
    if request.tools:
        add_tools(generation, request.tools, referenced_tools(generation))
    set_tool_choice(generation, request.tool_choice)
    shows = generation.HasField("reasoning") and generation.reasoning.mode in (
        pb.Reasoning.MODE_ENABLED,
        pb.Reasoning.MODE_ADAPTIVE,
    )
    return Ask(
        request.model,
        generation,
        pb.DIALECT_ANTHROPIC,
        shows_thinking=shows,
        omits_thinking_text=shows and generation.reasoning.omit_text,
    )


def _set_options(generation: pb.Generation, request: Request) -> None:
    if request.max_tokens is not None:
        generation.max_output_tokens = min(request.max_tokens, _LARGEST_COUNT)
    if request.stream:
        generation.stream = True
    if request.stop_sequences:
        generation.stop_sequences.extend(stop for stop in request.stop_sequences if stop.strip())
    if request.temperature is not None:
        generation.temperature = request.temperature
    if request.top_p is not None:
        generation.top_p = request.top_p
    if request.top_k:
        generation.top_k = request.top_k


def _set_reasoning(generation: pb.Generation, request: Request) -> None:
    if request.thinking is not None:
        _set_thinking(generation, request.thinking)
    if request.output_config is not None and request.output_config.effort is not None:
        generation.reasoning.effort = request.output_config.effort


def _set_thinking(generation: pb.Generation, thinking: schema.ThinkingConfig) -> None:
    generation.reasoning.mode = _MODES[thinking.type]
    if thinking.type == "enabled" and thinking.budget_tokens is None:
        raise missing(("thinking", "enabled", "budget_tokens"))
    if thinking.budget_tokens is not None:
        generation.reasoning.budget_tokens = min(thinking.budget_tokens, _LARGEST_COUNT)
    if thinking.display == "omitted":
        generation.reasoning.omit_text = True


def _set_format(generation: pb.Generation, request: Request) -> None:
    chosen, path = request.output_format, "output_format"
    if request.output_config is not None and request.output_config.format is not None:
        chosen, path = request.output_config.format, "output_config.format"
    if chosen is None:
        return
    if chosen.type != "json_schema":
        raise bad_value((path, "type"), "Input should be 'json_schema'")
    if not isinstance(chosen.schema, Raw) or bytes(chosen.schema)[:1] != b"{":
        raise bad_value((path, "schema"), "Input should be a JSON Schema object")
    generation.response_format.json_schema.schema_json = text_of(chosen.schema)


def _forward_named(generation: pb.Generation, request: Request) -> None:
    for name in _FORWARDED:
        value = getattr(request, name)
        if value is not msgspec.UNSET and is_set(value):
            generation.extra_fields_json[name] = text_of(value)
    if request.metadata:
        generation.extra_fields_json["metadata"] = _encode(request.metadata).decode()
    if request.service_tier is not None:
        generation.extra_fields_json["service_tier"] = _encode(request.service_tier).decode()


def _forward_unknown(generation: pb.Generation, body: bytes) -> None:
    for name, value in fields_of(body).items():
        if name not in _KNOWN:
            generation.extra_fields_json[name] = text_of(value)


def _add_system(generation: pb.Generation, system: "str | list[schema.TextParam] | list[Raw] | None") -> None:
    if not system:
        return
    blocks: Sequence[schema.TextParam | Raw] = () if isinstance(system, str) else system
    texts = [system] if isinstance(system, str) else [_system_text(block, at) for at, block in enumerate(blocks)]
    kept = [text for text in texts if text and not text.startswith(_BILLING_LINE)]
    if kept:
        message = generation.messages.add(role=pb.ROLE_SYSTEM)
        for text in kept:
            message.content.add().text.text = text


def _system_text(block: schema.TextParam | Raw, at: int) -> str:
    if isinstance(block, schema.TextParam):
        return block.text
    try:
        return decode(_system_block, block, ("system", at)).text
    except BadFieldError:
        members = fields_of(block, ("system", at))
        rest = {name: members[name] for name in ("type", "text") if name in members}
        return decode(_system_block, _encode(rest), ("system", at)).text


def _add_messages(generation: pb.Generation, request: Request) -> None:
    if not request.messages:
        raise bad_value(("messages",), "at least one message is required")
    if len(request.messages) > _MESSAGES_MAX:
        raise bad_value(("messages",), f"at most {_MESSAGES_MAX} messages are accepted")
    items: Sequence[schema.MessageParam | Raw] = request.messages
    for at, item in enumerate(items):
        if isinstance(item, schema.MessageParam):
            _add_message(generation, item, at)
        else:
            _add_message_tolerantly(generation, item, at)


def _add_message(generation: pb.Generation, item: schema.MessageParam, at: int) -> None:
    message = generation.messages.add(role=_ROLES[item.role])
    if isinstance(item.content, str):
        if item.content:
            message.content.add().text.text = item.content
    else:
        for index, block in enumerate(item.content):
            add_block(message.content, block, ("messages", at, "content", index))
    _check_content(generation, message, at)


def _add_message_tolerantly(generation: pb.Generation, raw: Raw, at: int) -> None:
    item = decode(_loose_message, raw, ("messages", at))
    role = _ROLES.get(item.role)
    if role is None:
        raise bad_value(("messages", at, "role"), "Input should be 'user', 'assistant' or 'system'")
    message = generation.messages.add(role=role)
    if isinstance(item.content, str):
        if item.content:
            message.content.add().text.text = item.content
    else:
        for index, block in enumerate(item.content):
            add_block_tolerantly(message.content, block, ("messages", at, "content", index))
    _check_content(generation, message, at)


def _check_content(generation: pb.Generation, message: pb.Message, at: int) -> None:
    if message.content or message.role == pb.ROLE_ASSISTANT:
        return
    if message.role == pb.ROLE_SYSTEM:
        del generation.messages[-1]
        return
    raise bad_value(("messages", at, "content"), "user messages must have non-empty content")
