"""Tools and tool choice of Anthropic Messages to their neutral form, as they stand at the end of the conversation.

Owns that translation; refuses to know what any upstream can do with a tool.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import Raw
from mws.inference.v1 import generation_pb2 as pb

from edge.anthropic import schema
from edge.anthropic.uncached import without_cache_control
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


class _Named(msgspec.Struct):
    """A tool by its name, or by its definition."""

    name: str = ""
    definition: Raw = Raw(b"null")


class _Change(msgspec.Struct):
    tool: _Named


_reference = msgspec.json.Decoder(_Reference)
_change = msgspec.json.Decoder(_Change)
_named = msgspec.json.Decoder(_Named)


@dataclass(slots=True)
class ToolChanges:
    """What a conversation does to the tools of its request."""

    referenced: set[str] = field(default_factory=set)  # deferred tools that it has brought into play
    added: dict[str, tuple[Raw, Path]] = field(default_factory=dict)  # definitions, by name
    removed: set[str] = field(default_factory=set)


NO_CHANGES = ToolChanges()


def take_changes(generation: pb.Generation) -> ToolChanges:
    """Reads what system messages say about tools, and takes it out of them: the list of tools says it from now on."""
    changes = ToolChanges()
    for at, message in enumerate(generation.messages):
        if message.role == pb.ROLE_SYSTEM:
            for index in reversed(_take(message, changes, at)):
                del message.content[index]
        else:
            changes.referenced.update(
                decode(_reference, block.json.encode()).tool_name for block in _opaque_blocks(message)
            )
    for at in range(len(generation.messages) - 1, -1, -1):
        message = generation.messages[at]
        if message.role == pb.ROLE_SYSTEM and not message.content:
            del generation.messages[at]
    return changes


def _take(message: pb.Message, changes: ToolChanges, at: int) -> list[int]:
    """Notes the changes of a system message; returns where they stand."""
    found = []
    for index, block in enumerate(message.content):
        kind = block.opaque.type
        if kind not in ("tool_addition", "tool_removal"):
            continue
        found.append(index)
        path: Path = ("messages", at, "content", index, kind)
        tool = decode(_change, block.opaque.json.encode(), path).tool
        defined = bytes(tool.definition)[:1] == b"{"
        name = decode(_named, tool.definition, (*path, "tool", "definition")).name if defined else tool.name
        if kind == "tool_removal":
            changes.removed.add(name)
            continue
        changes.removed.discard(name)
        changes.referenced.add(name)
        if defined:
            changes.added[name] = (tool.definition, (*path, "tool", "definition"))
    return found


def _opaque_blocks(message: pb.Message) -> Iterator[pb.OpaqueBlock]:
    for block in message.content:
        if block.HasField("tool_result"):
            for part in block.tool_result.content:
                if part.opaque.type == "tool_reference":
                    yield part.opaque


def add_tools(
    generation: pb.Generation, tools: "Sequence[schema.ToolParam] | Sequence[Raw]", changes: ToolChanges
) -> None:
    """Appends tools. A deferred one that nothing refers to is left to an upstream of the same dialect."""
    if len(tools) + len(changes.added) > _TOOLS_MAX:
        raise bad_value(("tools",), f"at most {_TOOLS_MAX} tools are accepted")
    items: Sequence[schema.ToolParam | Raw] = tools
    for at, item in enumerate(items):
        if isinstance(item, schema.ToolParam):
            _add_custom(generation, item, ("tools", at), changes)
        else:
            _add_tolerantly(generation, item, ("tools", at), changes)
    _check_names(generation)
    for name, (definition, path) in changes.added.items():
        _remove(generation, {name})
        _add_tolerantly(generation, definition, path, changes)
    _remove(generation, changes.removed)


def _check_names(generation: pb.Generation) -> None:
    names = [tool.name for tool in generation.tools]
    if len(set(names)) != len(names):
        raise bad_value(("tools",), "Tool names must be unique.")


def _remove(generation: pb.Generation, names: set[str]) -> None:
    if not names:
        return
    for at in range(len(generation.tools) - 1, -1, -1):
        if generation.tools[at].name in names:
            del generation.tools[at]


def _add_tolerantly(generation: pb.Generation, raw: Raw, path: Path, changes: ToolChanges) -> None:
    server = decode(_server, raw, path)
    if server.type not in (None, "custom"):
        tool = generation.tools.add(name=server.name or server.type)
        _make_opaque(tool, server.type or "", without_cache_control(raw, path))
        return
    members = fields_of(raw, path)
    for name in ("name", "input_schema"):
        if name not in members:
            raise missing((*path, "custom", name))
    extra = {name: value for name, value in members.items() if name not in _KNOWN}
    rest = {name: value for name, value in members.items() if name in _KNOWN}
    tool = _add_custom(generation, decode(_custom, _encode(rest), (*path, "custom")), path, changes)
    if extra and not tool.HasField("opaque"):
        text = object_text(extra)
        tool.extra_json = f"{tool.extra_json[:-1]},{text[1:]}" if tool.extra_json else text


def _add_custom(generation: pb.Generation, item: schema.ToolParam, path: Path, changes: ToolChanges) -> pb.Tool:
    check_object_schema(item.input_schema, (*path, "custom", "input_schema"))
    tool = generation.tools.add(name=item.name)
    if item.defer_loading and item.name not in changes.referenced:
        item.cache_control = msgspec.UNSET
        _make_opaque(tool, "custom", Raw(_encode(item)))
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


def _make_opaque(tool: pb.Tool, kind: str, json: Raw) -> None:
    tool.opaque.dialect = pb.DIALECT_ANTHROPIC
    tool.opaque.type = kind
    tool.opaque.json = text_of(json)


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
