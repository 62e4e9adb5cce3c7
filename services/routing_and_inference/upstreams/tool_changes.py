"""Tools that a conversation brings in or takes away on its way, for an upstream that only knows one list of tools.

Owns reading those blocks of the Anthropic dialect; an upstream of that dialect reads them itself.
"""

from collections.abc import Collection, Iterator
from typing import Any

import msgspec
from mws.inference.v1 import generation_pb2 as pb

from services.routing_and_inference.upstreams import errors

_CHANGES = ("tool_addition", "tool_removal")


class _Definition(msgspec.Struct):
    name: str = ""
    description: str | None = None
    input_schema: msgspec.Raw = msgspec.Raw()
    strict: bool | None = None


class _Named(msgspec.Struct):
    definition: _Definition | None = None
    name: str = ""
    tool_name: str = ""


class _Change(msgspec.Struct):
    tool: _Named | None = None
    tool_name: str = ""


_decode = msgspec.json.Decoder(_Change).decode


def offered(generation: pb.Generation, dialect: "pb.Dialect.ValueType") -> Collection[pb.Tool]:
    """The tools that the model has at the end of the conversation."""
    if dialect != pb.DIALECT_ANTHROPIC:
        return generation.tools
    changes = list(_changes(generation))
    if not changes:
        return generation.tools
    tools = {tool.name: tool for tool in generation.tools}
    for kind, change in changes:
        named = change.tool or _Named()
        if kind == "tool_removal":
            name = named.name or named.tool_name or change.tool_name
            tools.pop(name or (named.definition.name if named.definition else ""), None)
        elif named.definition is not None and named.definition.name:
            tools[named.definition.name] = _tool(named.definition)
    return tools.values()


def _changes(generation: pb.Generation) -> Iterator[tuple[str, _Change]]:
    for message in generation.messages:
        if message.role != pb.ROLE_SYSTEM:
            continue
        for block in message.content:
            if block.HasField("opaque") and block.opaque.type in _CHANGES:
                try:
                    yield block.opaque.type, _decode(block.opaque.json)
                except errors.UNREADABLE:
                    continue


def _tool(definition: _Definition) -> pb.Tool:
    fields: dict[str, Any] = {"name": definition.name, "description": definition.description or ""}
    schema = bytes(definition.input_schema)
    if schema.startswith(b"{"):
        fields["parameters_json"] = schema.decode()
    if definition.strict is not None:
        fields["strict"] = definition.strict
    return pb.Tool(**fields)
