"""Writes a neutral generation as the body of an OpenAI-compatible upstream's Chat Completions request.

Owns that translation; refuses to know HTTP and the answer. JSON of the caller is embedded as it came where it may be.
"""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from mws.inference.v1 import generation_pb2 as pb

from services.routing_and_inference.catalog import Option
from services.routing_and_inference.ports import UpstreamRequest
from services.routing_and_inference.upstreams import errors, tool_names
from services.routing_and_inference.upstreams.openai_messages import LONGEST_NAME, USUAL, manners, write_messages
from services.routing_and_inference.upstreams.prefill import GO_ON, is_prefilled
from services.routing_and_inference.upstreams.tool_changes import offered
from services.routing_and_inference.upstreams.tool_schemas import without_keywords

_MOST_STOPS = 4  # of the vendor whose dialect it is; others copied the rule
_EFFORTS = {"xhigh": "high", "max": "high"}  # names that only some models know
_LOW_BUDGET, _MEDIUM_BUDGET = 2048, 16_384  # thinking tokens up to which an effort is called low, medium

_encode = msgspec.json.Encoder().encode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class ChatRequestBody(msgspec.Struct, frozen=True, eq=False):
    """The body, and what its answer has to be read with.

    `tool_names`: as the upstream knows them -> as the caller does. `own_stops`: sequences that we look for ourselves.
    """

    body: bytes
    tool_names: Mapping[str, str]
    own_stops: tuple[str, ...] = ()


def write_request(request: UpstreamRequest) -> ChatRequestBody:
    """The body of POST /chat/completions. Raises UpstreamFailure (REJECTED) for what cannot be said in this dialect."""
    generation, target = request.generation, request.target
    options = target.options
    same_dialect = request.dialect == pb.DIALECT_OPENAI
    tools = offered(generation, request.dialect)
    names = tool_names.of_tools(tools, LONGEST_NAME) if tools else tool_names.SAME
    body: dict[str, Any] = {
        "model": target.model,
        "messages": write_messages(generation, request.dialect, manners(options) if options else USUAL),
    }
    if generation.HasField("max_output_tokens"):
        body[str(options.get("max_tokens_field", "max_tokens"))] = generation.max_output_tokens
    own_stops = _write_sampling(body, generation, options.get("most_stops", _MOST_STOPS))
    if tools:
        _write_tools(body, generation, _Tools(tools, names, same_dialect, _texts(options, "drop_schema_keywords")))
    _write_form(body, request)
    if options:
        _apply(body, request, same_dialect=same_dialect)
    return ChatRequestBody(_encode(body), {theirs: ours for ours, theirs in names.items()}, own_stops)


def _write_form(body: dict[str, Any], request: UpstreamRequest) -> None:
    """How the answer is to be made and sent."""
    generation = request.generation
    if generation.HasField("reasoning"):
        _write_reasoning(body, request)
    if generation.HasField("response_format"):
        _write_format(body, generation)
    if generation.stream:
        body["stream"] = True
        if request.target.options.get("stream_usage", True):  # whatever the caller says: calls are charged by it
            body["stream_options"] = {"include_usage": True}
    if is_prefilled(generation):
        _write_prefill(body, request)


def _apply(body: dict[str, Any], request: UpstreamRequest, *, same_dialect: bool) -> None:
    """What the options of the target add and take away."""
    if allowed := _texts(request.target.options, "forward_fields"):
        _write_extras(body, request.generation, allowed, same_dialect=same_dialect)
    for name in _texts(request.target.options, "drop_fields"):
        body.pop(name, None)


def _texts(options: Mapping[str, Option], name: str) -> tuple[str, ...]:
    value = options.get(name, ())
    return tuple(value) if isinstance(value, list | tuple) else ()


def _write_prefill(body: dict[str, Any], request: UpstreamRequest) -> None:
    """A last message of the assistant is continued by upstreams that can; the others are asked to."""
    if not request.profile.capabilities.prefill:
        body["messages"].append({"role": "user", "content": GO_ON})
    elif request.target.options.get("continue_final_message"):
        body["continue_final_message"], body["add_generation_prompt"] = True, False


def _write_sampling(body: dict[str, Any], generation: pb.Generation, most_stops: Option) -> tuple[str, ...]:
    """Gives the stop sequences that are more than the upstream takes."""
    more: tuple[str, ...] = ()
    if generation.stop_sequences:
        stops = list(generation.stop_sequences)
        if isinstance(most_stops, int) and 0 < most_stops < len(stops):
            more = tuple(stops[most_stops:])
            stops = stops[:most_stops]
        body["stop"] = stops
    for name in ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty"):
        if generation.HasField(name):
            body[name] = getattr(generation, name)
    return more


def _write_extras(
    body: dict[str, Any], generation: pb.Generation, allowed: tuple[str, ...], *, same_dialect: bool
) -> None:
    if same_dialect:
        for name in allowed:
            if name in generation.extra_fields_json and name not in body:
                body[name] = msgspec.Raw(generation.extra_fields_json[name])
    if "top_k" in allowed and generation.HasField("top_k"):
        body["top_k"] = generation.top_k


class _Tools(msgspec.Struct, frozen=True):
    """The tools of a request and how this upstream wants them."""

    tools: Collection[pb.Tool]
    names: Mapping[str, str]
    same_dialect: bool
    dropped_keywords: tuple[str, ...]


def _write_tools(body: dict[str, Any], generation: pb.Generation, offer: _Tools) -> None:
    tools: list[Any] = []
    for tool in offer.tools:
        if not tool.HasField("opaque"):
            tools.append(_tool(tool, offer))
        elif tool.opaque.dialect == pb.DIALECT_OPENAI:
            tools.append(msgspec.Raw(tool.opaque.json))
        elif generation.tool_choice.name and tool.name == generation.tool_choice.name:
            raise errors.rejected(
                f"tool_choice names {tool.name[:64]!r}, a tool that the model serving this call does not have"
            )
    if not tools:
        return
    body["tools"] = tools
    if generation.HasField("tool_choice"):
        custom = {tool.name for tool in offer.tools if tool.HasField("opaque") and tool.opaque.type == "custom"}
        _write_choice(body, generation.tool_choice, offer.names, custom)
    if generation.HasField("parallel_tool_calls"):
        body["parallel_tool_calls"] = generation.parallel_tool_calls


def _write_choice(body: dict[str, Any], choice: pb.ToolChoice, names: Mapping[str, str], custom: set[str]) -> None:
    if choice.mode == pb.ToolChoice.MODE_NAMED and choice.name in custom:
        body["tool_choice"] = {"type": "custom", "custom": {"name": choice.name}}
    elif choice.mode == pb.ToolChoice.MODE_NAMED:
        body["tool_choice"] = {"type": "function", "function": {"name": names.get(choice.name, choice.name)}}
    elif choice.mode == pb.ToolChoice.MODE_REQUIRED:
        body["tool_choice"] = "required"
    elif choice.mode == pb.ToolChoice.MODE_NONE:
        body["tool_choice"] = "none"
    else:
        body["tool_choice"] = "auto"


def _tool(tool: pb.Tool, offer: _Tools) -> dict[str, Any]:
    function: dict[str, Any] = {"name": offer.names.get(tool.name, tool.name)}
    if tool.description:
        function["description"] = tool.description
    parameters = _parameters(tool.parameters_json, same_dialect=offer.same_dialect)
    function["parameters"] = (
        without_keywords(parameters, offer.dropped_keywords) if offer.dropped_keywords else parameters
    )
    if tool.HasField("strict"):
        function["strict"] = tool.strict
    if offer.same_dialect and tool.extra_json:
        function = {**_members(tool.extra_json), **function}
    return {"type": "function", "function": function}


def _parameters(schema_json: str, *, same_dialect: bool) -> msgspec.Raw:
    """The schema as it came, unless it lacks what strict upstreams insist on or says what they refuse."""
    if not schema_json:
        return msgspec.Raw(b'{"type":"object","properties":{}}')
    if same_dialect:
        return msgspec.Raw(schema_json)
    try:
        schema = _members(schema_json)
    except errors.UNREADABLE:
        raise errors.rejected("a tool's parameters are not a JSON object") from None
    if "type" in schema and "properties" in schema and "$schema" not in schema:
        return msgspec.Raw(schema_json)
    schema.pop("$schema", None)
    schema.setdefault("type", msgspec.Raw(b'"object"'))
    schema.setdefault("properties", msgspec.Raw(b"{}"))
    return msgspec.Raw(_encode(schema))


def _write_reasoning(body: dict[str, Any], request: UpstreamRequest) -> None:
    """In the way that the upstream understands: `effort`, `enable_thinking` (of chat templates), or `none` at all."""
    reasoning = request.generation.reasoning
    way = str(request.target.options.get("reasoning", "effort" if request.profile.capabilities.thinking else "none"))
    if way == "effort":
        if effort := _effort(reasoning, same_dialect=request.dialect == pb.DIALECT_OPENAI):
            body["reasoning_effort"] = effort
    elif way == "enable_thinking" and reasoning.mode != pb.Reasoning.MODE_ADAPTIVE:
        off = reasoning.mode == pb.Reasoning.MODE_DISABLED or reasoning.effort == "none"
        body["chat_template_kwargs"] = {"enable_thinking": not off}


def _effort(reasoning: pb.Reasoning, *, same_dialect: bool) -> str:
    if reasoning.effort:
        return reasoning.effort if same_dialect else _EFFORTS.get(reasoning.effort, reasoning.effort)
    if reasoning.mode == pb.Reasoning.MODE_DISABLED:
        return "none"
    if reasoning.mode != pb.Reasoning.MODE_ENABLED or not reasoning.HasField("budget_tokens"):
        return ""
    if reasoning.budget_tokens < _LOW_BUDGET:
        return "low"
    return "medium" if reasoning.budget_tokens < _MEDIUM_BUDGET else "high"


def _write_format(body: dict[str, Any], generation: pb.Generation) -> None:
    kind = generation.response_format.WhichOneof("kind")
    if kind == "json_object":
        body["response_format"] = {"type": "json_object"}
    elif kind == "json_schema":
        wanted = generation.response_format.json_schema
        schema: dict[str, Any] = {"name": wanted.name or "output", "schema": msgspec.Raw(wanted.schema_json)}
        if wanted.HasField("strict"):
            schema["strict"] = wanted.strict
        elif not wanted.name:  # the other dialect's format has no name and is always exact
            schema["strict"] = True
        if wanted.description:
            schema["description"] = wanted.description
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
