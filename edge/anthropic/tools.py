"""Tools and tool choice of Anthropic Messages to their neutral form.

Owns that translation; refuses to know what any upstream can do with a tool.
"""

from collections.abc import Iterator, Sequence

import msgspec
from msgspec import Raw
from mws.inference.v1 import generation_pb2 as pb

from edge.anthropic import schema
from edge.decoding import decode, fields_of, is_set, object_text, text_of
from edge.json_schema import check_object_schema
from edge.problems import Path, bad_value, missing

_custom = msgspec.json.Decoder(schema.ToolParam)
_server = msgspec.json.Decoder(schema.ServerTool)
_encode = msgspec.json.Encoder().encode
_KNOWN = frozenset(schema.ToolParam.__struct_encode_fields__)
_KEPT = ("input_examples", "eager_input_streaming", "allowed_callers")
_TOOLS_MAX = 1024
_MODES = {
    "auto": pb.ToolChoice.MODE_AUTO,
    "any": pb.ToolChoice.MODE_REQUIRED,
    "tool": pb.ToolChoice.MODE_NAMED,
    "none": pb.ToolChoice.MODE_NONE,
}


class _Reference(msgspec.Struct):
    tool_name: str = ""


class _Definition(msgspec.Struct):
    name: str = ""


class _Addition(msgspec.Struct):
    definition: _Definition = msgspec.field(default_factory=_Definition)


class _ToolAddition(msgspec.Struct):
    tool: _Addition = msgspec.field(default_factory=_Addition)


_reference = msgspec.json.Decoder(_Reference)
_addition = msgspec.json.Decoder(_ToolAddition)


def referenced_tools(generation: pb.Generation) -> frozenset[str]:
    """Names of deferred tools that the conversation has brought into play."""
    names = set()
    for block in _opaque_blocks(generation):
        if block.type == "tool_reference":
            names.add(decode(_reference, block.json.encode()).tool_name)
        elif block.type == "tool_addition":
            names.add(decode(_addition, block.json.encode()).tool.definition.name)
    return frozenset(names)


def _opaque_blocks(generation: pb.Generation) -> Iterator[pb.OpaqueBlock]:
    for message in generation.messages:
        for block in message.content:
            kind = block.WhichOneof("kind")
            if kind == "opaque":
                yield block.opaque
            elif kind == "tool_result":
                yield from (part.opaque for part in block.tool_result.content if part.HasField("opaque"))


def add_tools(
    generation: pb.Generation, tools: "Sequence[schema.ToolParam] | Sequence[Raw]", referenced: frozenset[str]
) -> None:
    """Appends tools. A deferred one that nothing refers to is left to an upstream of the same dialect."""
    if len(tools) > _TOOLS_MAX:
        raise bad_value(("tools",), f"at most {_TOOLS_MAX} tools are accepted")
    items: Sequence[schema.ToolParam | Raw] = tools
    for at, item in enumerate(items):
        if isinstance(item, schema.ToolParam):
            _add_custom(generation, item, ("tools", at), referenced)
        else:
            _add_tolerantly(generation, item, ("tools", at), referenced)


def _add_tolerantly(generation: pb.Generation, raw: Raw, path: Path, referenced: frozenset[str]) -> None:
    server = decode(_server, raw, path)
    if server.type not in (None, "custom"):
        tool = generation.tools.add(name=server.name or server.type)
        _make_opaque(tool, server.type or "", text_of(raw))
        return
    members = fields_of(raw, path)
    for name in ("name", "input_schema"):
        if name not in members:
            raise missing((*path, name))
    extra = {name: value for name, value in members.items() if name not in _KNOWN}
    rest = {name: value for name, value in members.items() if name in _KNOWN}
    tool = _add_custom(generation, decode(_custom, _encode(rest), path), path, referenced)
    if extra and not tool.HasField("opaque"):
        text = object_text(extra)
        tool.extra_json = f"{tool.extra_json[:-1]},{text[1:]}" if tool.extra_json else text


def _add_custom(generation: pb.Generation, item: schema.ToolParam, path: Path, referenced: frozenset[str]) -> pb.Tool:
    check_object_schema(item.input_schema, (*path, "input_schema"))
    tool = generation.tools.add(name=item.name)
    if item.defer_loading and item.name not in referenced:
        _make_opaque(tool, "custom", text_of(_encode(item)))
        return tool
    tool.description = item.description or ""
    tool.parameters_json = text_of(item.input_schema)
    if item.strict is not None:
        tool.strict = item.strict
    kept: dict[str, Raw] = {name: getattr(item, name) for name in _KEPT if is_set(getattr(item, name))}
    if item.defer_loading:
        kept["defer_loading"] = Raw(b"true")
    tool.extra_json = object_text(kept)
    return tool


def _make_opaque(tool: pb.Tool, kind: str, json: str) -> None:
    tool.opaque.dialect = pb.DIALECT_ANTHROPIC
    tool.opaque.type = kind
    tool.opaque.json = json


def set_tool_choice(generation: pb.Generation, choice: schema.ToolChoiceParam | None) -> None:
    """Sets which tool may be called. Without tools there is nothing to choose."""
    if choice is None:
        return
    if choice.type == "tool" and not choice.name:
        raise missing(("tool_choice", "tool", "name"))
    if not generation.tools:
        return
    generation.tool_choice.mode = _MODES[choice.type]
    if choice.type == "tool":
        named = next((tool for tool in generation.tools if tool.name == choice.name), None)
        if named is None:
            raise bad_value(("tool_choice", "name"), f"Tool '{choice.name}' not found in provided tools")
        generation.tool_choice.name = choice.name or ""
    if choice.disable_parallel_tool_use:
        generation.parallel_tool_calls = False
