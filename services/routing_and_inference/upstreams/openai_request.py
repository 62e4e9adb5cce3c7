"""Writes a neutral generation as the body of an OpenAI-compatible upstream's Chat Completions request.

Owns that translation; refuses to know HTTP and the answer. JSON of the caller is embedded as it came where it may be.
"""

import hashlib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec
from mws.inference.v1 import generation_pb2 as pb

from services.routing_and_inference.catalog import UpstreamTarget
from services.routing_and_inference.ports import UpstreamRequest
from services.routing_and_inference.upstreams import errors
from services.routing_and_inference.upstreams.openai_messages import write_messages

_MOST_STOPS = 4  # of the vendor whose dialect it is; others copied the rule
_LONGEST_NAME = 64
_PLAIN_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_EFFORTS = {"xhigh": "high", "max": "high"}  # names that only some models know
_LOW_BUDGET, _MEDIUM_BUDGET = 2048, 16_384  # thinking tokens up to which an effort is called low, medium

_SAME_NAMES: Mapping[str, str] = MappingProxyType({})

_encode = msgspec.json.Encoder().encode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class ChatRequestBody(msgspec.Struct, frozen=True, eq=False):
    """The body, and how to read tool names back: as the upstream knows them -> as the caller does."""

    body: bytes
    tool_names: Mapping[str, str]


def write_request(request: UpstreamRequest) -> ChatRequestBody:
    """The body of POST /chat/completions. Raises UpstreamFailure (REJECTED) for what cannot be said in this dialect."""
    generation, target = request.generation, request.target
    same_dialect = request.dialect == pb.DIALECT_OPENAI
    names = _tool_names(generation) if generation.tools else _SAME_NAMES
    body: dict[str, Any] = {
        "model": target.model,
        "messages": write_messages(generation, request.dialect, names),
    }
    if generation.HasField("max_output_tokens"):
        body[str(target.options.get("max_tokens_field", "max_tokens"))] = generation.max_output_tokens
    _write_sampling(body, generation)
    if generation.tools:
        _write_tools(body, generation, names, same_dialect=same_dialect)
    if generation.HasField("reasoning"):
        _write_reasoning(body, request)
    if generation.HasField("response_format"):
        _write_format(body, generation)
    if generation.stream:
        body["stream"] = True
        if target.options.get("stream_usage", True):
            body["stream_options"] = {"include_usage": True}
    if same_dialect and "forward_fields" in target.options:
        _write_extras(body, generation, target)
    return ChatRequestBody(_encode(body), {theirs: ours for ours, theirs in names.items()})


def _tool_names(generation: pb.Generation) -> dict[str, str]:
    """Names that this dialect does not take -> names that it takes; distinct names stay distinct."""
    return {
        tool.name: f"{re.sub(r'[^a-zA-Z0-9_-]', '_', tool.name)[: _LONGEST_NAME - 9]}_{_short_hash(tool.name)}"
        for tool in generation.tools
        if not tool.HasField("opaque") and _PLAIN_NAME.fullmatch(tool.name) is None
    }


def _short_hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def _write_sampling(body: dict[str, Any], generation: pb.Generation) -> None:
    if generation.stop_sequences:
        body["stop"] = list(generation.stop_sequences)[:_MOST_STOPS]
    for name in ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty"):
        if generation.HasField(name):
            body[name] = getattr(generation, name)


def _write_extras(body: dict[str, Any], generation: pb.Generation, target: UpstreamTarget) -> None:
    allowed = target.options.get("forward_fields", ())
    if not isinstance(allowed, list | tuple):
        return
    for name in allowed:
        if name in generation.extra_fields_json and name not in body:
            body[name] = msgspec.Raw(generation.extra_fields_json[name])
    if "top_k" in allowed and generation.HasField("top_k"):
        body["top_k"] = generation.top_k


def _write_tools(
    body: dict[str, Any], generation: pb.Generation, names: Mapping[str, str], *, same_dialect: bool
) -> None:
    tools: list[Any] = []
    for tool in generation.tools:
        if not tool.HasField("opaque"):
            tools.append(_tool(tool, names, same_dialect=same_dialect))
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
        _write_choice(body, generation.tool_choice, names)
    if generation.HasField("parallel_tool_calls"):
        body["parallel_tool_calls"] = generation.parallel_tool_calls


def _write_choice(body: dict[str, Any], choice: pb.ToolChoice, names: Mapping[str, str]) -> None:
    if choice.mode == pb.ToolChoice.MODE_NAMED:
        body["tool_choice"] = {"type": "function", "function": {"name": names.get(choice.name, choice.name)}}
    elif choice.mode == pb.ToolChoice.MODE_REQUIRED:
        body["tool_choice"] = "required"
    elif choice.mode == pb.ToolChoice.MODE_NONE:
        body["tool_choice"] = "none"
    else:
        body["tool_choice"] = "auto"


def _tool(tool: pb.Tool, names: Mapping[str, str], *, same_dialect: bool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": names.get(tool.name, tool.name)}
    if tool.description:
        function["description"] = tool.description
    function["parameters"] = _parameters(tool.parameters_json, same_dialect=same_dialect)
    if tool.HasField("strict"):
        function["strict"] = tool.strict
    if same_dialect and tool.extra_json:
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
    except msgspec.DecodeError:
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
