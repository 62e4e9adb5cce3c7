"""Messages requests to the neutral generation: pure, one pass when the body holds only what the Structs name.

Owns the translation and its checks; refuses to know models, limits or transports.
"""

import operator
from collections.abc import Sequence

import msgspec
from msgspec import Raw
from mws.inference.v1 import generation_pb2 as pb

from edge.anthropic import schema
from edge.anthropic.tools import NO_CHANGES, add_tools, set_tool_choice, take_changes
from edge.anthropic.turns import Turns
from edge.ask import Ask
from edge.decoding import decode, fields_of, text_of
from edge.problems import BadFieldError, bad_value, missing

Request = schema.MessagesRequest | schema.CountTokensRequest | schema.LooseRequest

_messages = msgspec.json.Decoder(schema.MessagesRequest)
_count_tokens = msgspec.json.Decoder(schema.CountTokensRequest)
_loose = msgspec.json.Decoder(schema.LooseRequest)
_system_block = msgspec.json.Decoder(schema.TextParam)
_encode = msgspec.json.Encoder().encode

_KNOWN = frozenset(schema.LooseRequest.__struct_encode_fields__)
# Named by the schema, and of use to an upstream of the same dialect only: it takes what its allow list has. What nobody
# here reads is accepted and dropped.
_FORWARDED = (
    "compaction",
    "container",
    "context_management",
    "diagnostics",
    "inference_geo",
    "mcp_servers",
    "metadata",
    "service_tier",
    "speed",
    "thread",
)
# Claude Code puts a line that changes with every request in front of the prompt; it would defeat every prefix cache.
_BILLING_LINE = "x-anthropic-billing-header"
_MODES = {
    "enabled": pb.Reasoning.MODE_ENABLED,
    "between_tools": pb.Reasoning.MODE_ENABLED,
    "adaptive": pb.Reasoning.MODE_ADAPTIVE,
    "disabled": pb.Reasoning.MODE_DISABLED,
}
_MESSAGES_MAX = 100_000
_forwarded = operator.attrgetter(*_FORWARDED)
_LEAST_BUDGET = 1024  # tokens of reasoning
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
    _add_messages(generation, request.messages)
    changes = take_changes(generation) if isinstance(request, schema.LooseRequest) else NO_CHANGES
    if request.tools or changes.added:
        add_tools(generation, request.tools or (), changes)
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
        stops = [stop for stop in request.stop_sequences if stop]
        if not all(map(str.strip, stops)):
            raise bad_value(("stop_sequences",), "each stop sequence must contain non-whitespace")
        generation.stop_sequences.extend(stops)
    if request.temperature is not None:
        generation.temperature = request.temperature
    if request.top_p is not None:
        generation.top_p = request.top_p
    if request.top_k:
        generation.top_k = request.top_k


def _set_reasoning(generation: pb.Generation, request: Request) -> None:
    if request.thinking is not None:
        _set_thinking(generation, request.thinking, request)
    if request.output_config is not None and request.output_config.effort is not None:
        generation.reasoning.effort = request.output_config.effort


def _set_thinking(generation: pb.Generation, thinking: schema.ThinkingConfig, request: Request) -> None:
    reasoning = generation.reasoning
    reasoning.mode = _MODES[thinking.type]
    if thinking.type == "enabled":
        _check_budget(thinking.budget_tokens, request)
    if thinking.budget_tokens is not None:
        reasoning.budget_tokens = min(max(thinking.budget_tokens, 1), _LARGEST_COUNT)
    reasoning.only_between_tools = thinking.type == "between_tools"
    reasoning.omit_text = thinking.display == "omitted"
    reasoning.summarize_text = thinking.display == "summarized"


def _check_budget(budget: int | None, request: Request) -> None:
    path = ("thinking", "enabled", "budget_tokens")
    if budget is None:
        raise missing(path)
    if budget < _LEAST_BUDGET:
        raise bad_value(path, f"Input should be greater than or equal to {_LEAST_BUDGET}")
    # Between the calls of tools reasoning may go on beyond one answer, so its budget may as well.
    if request.max_tokens and budget >= request.max_tokens and not request.tools:
        raise bad_value((), "`max_tokens` must be greater than `thinking.budget_tokens`.")


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
    values = _forwarded(request)
    if not any(values):  # of nearly every request; UNSET is false as well
        return
    for name, value in zip(_FORWARDED, values, strict=True):
        if value is None or value is msgspec.UNSET:
            continue
        text = text_of(value if isinstance(value, Raw) else _encode(value))
        if text not in ("null", "[]", "{}"):
            generation.extra_fields_json[name] = text


def _forward_unknown(generation: pb.Generation, body: bytes) -> None:
    for name, value in fields_of(body).items():
        if name not in _KNOWN:
            generation.extra_fields_json[name] = text_of(value)


def _add_messages(generation: pb.Generation, messages: "list[schema.MessageParam] | list[Raw]") -> None:
    if not messages:
        raise bad_value(("messages",), "at least one message is required")
    if len(messages) > _MESSAGES_MAX:
        raise bad_value(("messages",), f"at most {_MESSAGES_MAX} messages are accepted")
    turns = Turns(generation)
    for item in messages:
        turns.add(item)
    turns.finish()


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
