"""Tools, functions and their choice in Chat Completions to their neutral form.

Owns that translation; refuses to know what any upstream can do with a tool.
"""

from collections.abc import Sequence

import msgspec
from msgspec import Raw
from mws.inference.v1 import generation_pb2 as pb

from edge.decoding import decode, fields_of, text_of
from edge.json_schema import check_object_schema
from edge.openai import schema
from edge.problems import Path, bad_value, missing

_tool = msgspec.json.Decoder(schema.LooseTool)
_encode = msgspec.json.Encoder().encode
_TOOLS_MAX = 1024
_MODES = {
    "auto": pb.ToolChoice.MODE_AUTO,
    "required": pb.ToolChoice.MODE_REQUIRED,
    "none": pb.ToolChoice.MODE_NONE,
}


def add_tools(generation: pb.Generation, tools: "Sequence[schema.ToolParam] | Sequence[Raw]") -> None:
    """Appends tools; one that is not a function is left to an upstream of the same dialect."""
    if len(tools) > _TOOLS_MAX:
        raise bad_value(("tools",), f"at most {_TOOLS_MAX} tools are accepted")
    items: Sequence[schema.ToolParam | Raw] = tools
    for at, item in enumerate(items):
        path: Path = ("tools", at)
        tool: schema.ToolParam | schema.LooseTool = decode(_tool, item, path) if isinstance(item, Raw) else item
        if tool.type == "function":
            if tool.function is None:
                raise missing((*path, "function"))
            _add(generation, tool.function, (*path, "function"))
        elif isinstance(item, Raw):
            _add_opaque(generation, tool.type, item, path)
        else:
            raise bad_value((*path, "type"), f"{tool.type[:40]!r} is not a kind of tool that is served here")


def add_functions(generation: pb.Generation, functions: Sequence[schema.Function]) -> None:
    """Appends functions of the legacy form."""
    for at, function in enumerate(functions):
        _add(generation, function, ("functions", at))


def _add(generation: pb.Generation, function: schema.Function, path: Path) -> None:
    tool = generation.tools.add(name=function.name, description=function.description or "")
    if isinstance(function.parameters, Raw) and bytes(function.parameters) != b"null":
        check_object_schema(function.parameters, (*path, "parameters"))
        tool.parameters_json = text_of(function.parameters)
    if function.strict is not None:
        tool.strict = function.strict


class _Named(msgspec.Struct):
    name: str = ""


_named = msgspec.json.Decoder(_Named)


def _add_opaque(generation: pb.Generation, kind: str, raw: Raw, path: Path) -> None:
    inner = fields_of(raw).get(kind)
    name = kind
    if inner is not None and bytes(inner)[:1] == b"{":
        name = decode(_named, inner, (*path, kind)).name or kind
    tool = generation.tools.add(name=name)
    tool.opaque.dialect, tool.opaque.type, tool.opaque.json = pb.DIALECT_OPENAI, kind, text_of(raw)


def set_tool_choice(generation: pb.Generation, choice: str | schema.ToolChoiceParam | None) -> None:
    """Sets which tool may be called."""
    if choice is None:
        return
    if isinstance(choice, str):
        if choice not in _MODES:
            raise bad_value(("tool_choice",), "Supported values are: 'none', 'auto', and 'required'")
        generation.tool_choice.mode = _MODES[choice]
        return
    named = choice.function or choice.custom
    if named is None:
        raise missing(("tool_choice", "function"))
    _set_named(generation, named.name, ("tool_choice", "function", "name"))


def set_function_choice(generation: pb.Generation, choice: str | schema.NamedFunction | None) -> None:
    """Sets which function may be called, in the legacy form."""
    if isinstance(choice, schema.NamedFunction):
        _set_named(generation, choice.name, ("function_call", "name"))
    elif choice is not None:
        if choice not in ("none", "auto"):
            raise bad_value(("function_call",), "Supported values are: 'none' and 'auto'")
        generation.tool_choice.mode = _MODES[choice]


def _set_named(generation: pb.Generation, name: str, path: Path) -> None:
    if all(tool.name != name for tool in generation.tools):
        raise bad_value(path, f"Tool choice '{name}' not found in 'tools' parameter")
    generation.tool_choice.mode = pb.ToolChoice.MODE_NAMED
    generation.tool_choice.name = name


def allow_only(generation: pb.Generation, allowed: schema.AllowedTools) -> None:
    """Leaves only the tools that the choice lists."""
    names = {named.name for tool in allowed.tools if (named := tool.function or tool.custom) is not None}
    kept = [tool for tool in generation.tools if tool.name in names]
    if not kept:
        raise bad_value(("tool_choice", "allowed_tools", "tools"), "none of them is found in 'tools'")
    del generation.tools[:]
    generation.tools.extend(kept)
    generation.tool_choice.mode = _MODES[allowed.mode]
