"""Writes a neutral generation as the body of an Anthropic Messages request.

Owns settings and tools; turns are written by `anthropic_turns`. Refuses to know HTTP and the answer.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from mws.inference.v1 import generation_pb2 as pb

from services.routing_and_inference.ports import UpstreamRequest
from services.routing_and_inference.upstreams import errors, tool_ids, tool_names
from services.routing_and_inference.upstreams.anthropic_turns import LONGEST_NAME, TurnWriter
from services.routing_and_inference.upstreams.prefill import GO_ON, is_prefilled

_FALLBACK_MAX_TOKENS = 4096
_LEAST_BUDGET = 1024  # thinking tokens that the dialect accepts
_BUDGETS = {"minimal": 1024, "low": 1024, "medium": 4096, "high": 16_384, "xhigh": 32_768, "max": 65_536}
# Kinds of tools that the caller runs itself, so that nobody is paid for them. Any other kind runs at the provider, at a
# price of its own: it reaches an upstream whose option `server_tools` has it, and is left out for all others.
_RUN_BY_CALLER = ("custom", "bash_", "text_editor_", "memory_", "computer_", "browser_", "tool_search_tool_")
_EFFORTS = {"minimal": "low"}  # names that this dialect does not have
_WITHOUT_SAMPLING = "2026-10-21"  # from this version on, settings of sampling are refused
_ANSWER_TOOL = "give_answer"
_ANSWER_TOOL_USE = "Gives the answer. Its input is the answer itself."
_JSON_ONLY = "Answer with one JSON object and nothing else: no explanation, no code fence."

_encode = msgspec.json.Encoder().encode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass(frozen=True, slots=True)
class MessagesRequestBody:
    """The body, and what its answer has to be read with.

    `tool_names`: as the upstream knows them -> as the caller does. `answer_tool`: its input is the answer itself.
    """

    body: bytes
    tool_names: Mapping[str, str]
    answer_tool: str = ""


def write_request(request: UpstreamRequest) -> MessagesRequestBody:
    """The body of POST /v1/messages. Raises UpstreamFailure (REJECTED) for what cannot be said in this dialect."""
    generation, options = request.generation, request.target.options
    same_dialect = request.dialect == pb.DIALECT_ANTHROPIC
    turns = _turns(request, same_dialect=same_dialect)
    names = tool_names.of_tools(generation.tools, LONGEST_NAME) if generation.tools else tool_names.SAME
    body: dict[str, Any] = {
        "model": request.target.model,
        "max_tokens": _max_tokens(request),
        "messages": turns.turns or [{"role": "user", "content": turns.system or "."}],
    }
    if generation.response_format.WhichOneof("kind") == "json_object":
        turns.system.append({"type": "text", "text": _JSON_ONLY})
    if turns.system and turns.turns:
        body["system"] = turns.system
    if generation.stream:
        body["stream"] = True
    kinds = _server_tools(options.get("server_tools", ()))
    _write_tools(body, generation, _Tools(names, kinds, same_dialect))
    _write_reasoning(body, generation, same_dialect=same_dialect, way=str(options.get("reasoning", "budget")))
    _write_sampling(body, generation, same_dialect=same_dialect)
    answer_tool = _write_format(body, generation, with_tool=options.get("json_schema") == "tool")
    if options:
        _apply(body, request, same_dialect=same_dialect)
    return MessagesRequestBody(_encode(body), {theirs: ours for ours, theirs in names.items()}, answer_tool)


def _turns(request: UpstreamRequest, *, same_dialect: bool) -> TurnWriter:
    options = request.target.options
    turns = TurnWriter(
        same_dialect=same_dialect,
        tool_id=tool_ids.ways(options.get("tool_ids"), "encoded")[0],
        # An upstream of the caller's own dialect knows instructions inside the conversation.
        keeps_system=options.get("system_in_messages", "keep" if same_dialect else "fold") == "keep",
    )
    for message in request.generation.messages:
        turns.add(message)
    turns.finish()
    takes_prefill = request.profile.capabilities.prefill and options.get("prefill", True)
    if not takes_prefill and is_prefilled(request.generation):
        turns.turns.append({"role": "user", "content": GO_ON})
    return turns


def _apply(body: dict[str, Any], request: UpstreamRequest, *, same_dialect: bool) -> None:
    """What the options of the target add and take away."""
    options = request.target.options
    allowed = options.get("forward_fields", ())
    if same_dialect:
        _write_extras(body, request.generation, allowed)
    elif isinstance(allowed, list | tuple) and "metadata" in allowed and "user" in request.generation.extra_fields_json:
        body["metadata"] = {"user_id": msgspec.Raw(request.generation.extra_fields_json["user"])}
    dropped = options.get("drop_fields", ())
    for name in dropped if isinstance(dropped, list | tuple) else ():
        body.pop(name, None)
    if str(options.get("anthropic_version", "")) >= _WITHOUT_SAMPLING:
        for name in ("temperature", "top_p", "top_k"):
            body.pop(name, None)


def _max_tokens(request: UpstreamRequest) -> int:
    if request.generation.HasField("max_output_tokens"):
        return request.generation.max_output_tokens
    return request.profile.max_output_tokens or _FALLBACK_MAX_TOKENS


def _write_sampling(body: dict[str, Any], generation: pb.Generation, *, same_dialect: bool) -> None:
    if stops := [stop for stop in generation.stop_sequences if stop.strip()]:
        body["stop_sequences"] = stops
    # Reasoning leaves no choice of sampling in this dialect; a caller of another one cannot know that.
    if "thinking" in body and not same_dialect:
        return
    if generation.HasField("temperature"):
        body["temperature"] = generation.temperature if same_dialect else min(generation.temperature, 1.0)
    if generation.HasField("top_p") and (same_dialect or "temperature" not in body):  # together they are refused
        body["top_p"] = generation.top_p
    if generation.HasField("top_k"):
        body["top_k"] = generation.top_k


def _server_tools(allowed: object) -> tuple[str, ...]:
    """How the kinds of tools begin that may run at this upstream, or at the caller."""
    return (*_RUN_BY_CALLER, *map(str, allowed if isinstance(allowed, list | tuple) else ()))


class _Tools(msgspec.Struct, frozen=True):
    """How this upstream wants tools; `kinds`: how the kinds of tools begin that it may run itself."""

    names: Mapping[str, str]
    kinds: tuple[str, ...]
    same_dialect: bool


def _write_tools(body: dict[str, Any], generation: pb.Generation, offer: _Tools) -> None:
    tools: list[Any] = []
    for tool in generation.tools:
        if not tool.HasField("opaque"):
            tools.append(_tool(tool, offer))
        elif tool.opaque.dialect == pb.DIALECT_ANTHROPIC and tool.opaque.type.startswith(offer.kinds):
            tools.append(msgspec.Raw(tool.opaque.json))
        elif tool.opaque.dialect == pb.DIALECT_OPENAI and tool.opaque.type == "custom":
            raise errors.rejected("tools of type 'custom' are not available with the model that serves this call")
        elif generation.tool_choice.name and tool.name == generation.tool_choice.name:
            raise errors.rejected(f"tool_choice names {tool.name[:64]!r}, which the model of this call does not have")
    if not tools:
        return
    body["tools"] = tools
    choice = _choice(generation, offer.names)
    if choice is not None:
        body["tool_choice"] = choice


def _choice(generation: pb.Generation, names: Mapping[str, str]) -> dict[str, Any] | None:
    choice, written = generation.tool_choice, None
    if choice.mode == pb.ToolChoice.MODE_NONE:
        return {"type": "none"}
    if choice.mode == pb.ToolChoice.MODE_NAMED:
        written = {"type": "tool", "name": names.get(choice.name, choice.name)}
    elif choice.mode == pb.ToolChoice.MODE_REQUIRED:
        written = {"type": "any"}
    elif generation.HasField("tool_choice"):
        written = {"type": "auto"}
    if generation.HasField("parallel_tool_calls"):
        return {**(written or {"type": "auto"}), "disable_parallel_tool_use": not generation.parallel_tool_calls}
    return written


def _tool(tool: pb.Tool, offer: _Tools) -> dict[str, Any]:
    written: dict[str, Any] = {"name": offer.names.get(tool.name, tool.name)}
    if tool.description:
        written["description"] = tool.description
    written["input_schema"] = _schema(tool.parameters_json, same_dialect=offer.same_dialect)
    if offer.same_dialect:
        if tool.HasField("strict"):
            written["strict"] = tool.strict
        if tool.extra_json:
            written = {**_members(tool.extra_json), **written}
    return written


def _schema(schema_json: str, *, same_dialect: bool) -> msgspec.Raw:
    if not schema_json:
        return msgspec.Raw(b'{"type":"object","properties":{}}')
    if same_dialect or re.search(r'"type"\s*:\s*"object"', schema_json[:4096]):
        return msgspec.Raw(schema_json)
    schema = _members(schema_json)
    schema.setdefault("type", msgspec.Raw(b'"object"'))
    return msgspec.Raw(_encode(schema))


def _write_reasoning(body: dict[str, Any], generation: pb.Generation, *, same_dialect: bool, way: str) -> None:
    """For a caller of another dialect as the upstream understands it: `effort`, `budget`, or `none` at all."""
    if not generation.HasField("reasoning"):
        return
    reasoning = generation.reasoning
    if not same_dialect:
        if way == "effort":
            _write_effort(body, reasoning)
        elif way == "budget":
            _write_budget(body, generation)
        return
    if thinking := _thinking(reasoning):
        body["thinking"] = thinking
    if reasoning.effort:
        body["output_config"] = {"effort": reasoning.effort}


def _thinking(reasoning: pb.Reasoning) -> dict[str, Any] | None:
    if reasoning.mode == pb.Reasoning.MODE_DISABLED:
        return {"type": "disabled"}
    if reasoning.mode == pb.Reasoning.MODE_ENABLED:
        if reasoning.only_between_tools:
            return {"type": "between_tools"}
        written: dict[str, Any] = {"type": "enabled"}
        if reasoning.HasField("budget_tokens"):
            written["budget_tokens"] = reasoning.budget_tokens
        else:
            written["type"] = "adaptive"
    elif reasoning.mode == pb.Reasoning.MODE_ADAPTIVE:
        written = {"type": "adaptive"}
    else:
        return None
    if reasoning.omit_text or reasoning.summarize_text:
        written["display"] = "omitted" if reasoning.omit_text else "summarized"
    return written


def _write_effort(body: dict[str, Any], reasoning: pb.Reasoning) -> None:
    if reasoning.mode == pb.Reasoning.MODE_DISABLED or reasoning.effort == "none":
        body["thinking"] = {"type": "disabled"}
    elif reasoning.effort:
        body["output_config"] = {"effort": _EFFORTS.get(reasoning.effort, reasoning.effort)}


def _write_budget(body: dict[str, Any], generation: pb.Generation) -> None:
    """Reasoning as this dialect has it, for a caller of another: never with a forced tool, never all of the answer."""
    reasoning = generation.reasoning
    if reasoning.mode == pb.Reasoning.MODE_DISABLED or reasoning.effort == "none":
        return
    budget = reasoning.budget_tokens if reasoning.HasField("budget_tokens") else _BUDGETS.get(reasoning.effort, 0)
    budget = min(max(budget, _LEAST_BUDGET), body["max_tokens"] // 2) if budget else 0
    forced = generation.tools and generation.tool_choice.mode in (pb.ToolChoice.MODE_NAMED, pb.ToolChoice.MODE_REQUIRED)
    if budget >= _LEAST_BUDGET and not forced:
        body["thinking"] = {"type": "enabled", "budget_tokens": budget}


def _write_format(body: dict[str, Any], generation: pb.Generation, *, with_tool: bool) -> str:
    """The name of the tool whose input will be the answer, if it is asked for so."""
    if generation.response_format.WhichOneof("kind") != "json_schema":
        return ""
    schema = msgspec.Raw(generation.response_format.json_schema.schema_json)
    if not with_tool or "tools" in body:  # a forced tool would take the caller's own away
        body.setdefault("output_config", {})["format"] = {"type": "json_schema", "schema": schema}
        return ""
    body["tools"] = [{"name": _ANSWER_TOOL, "description": _ANSWER_TOOL_USE, "input_schema": schema}]
    body["tool_choice"] = {"type": "tool", "name": _ANSWER_TOOL}
    body.pop("thinking", None)  # refused beside a forced tool
    return _ANSWER_TOOL


def _write_extras(body: dict[str, Any], generation: pb.Generation, allowed: object) -> None:
    fields: Mapping[str, str] = generation.extra_fields_json
    for name in allowed if isinstance(allowed, list | tuple) else ():
        if name in fields and name not in body:
            body[name] = msgspec.Raw(fields[name])
