"""Content blocks of Anthropic Messages to neutral blocks, unknown kinds and unknown members kept as JSON.

Owns that translation; refuses to judge the order of blocks, which an upstream knows better.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
from msgspec import Raw
from mws.inference.v1 import generation_pb2 as pb

from edge.anthropic import schema
from edge.anthropic.uncached import without_cache_control
from edge.decoding import Extended, TaggedDecoder, decode, is_set, object_text, text_of
from edge.problems import Path, bad_value, missing

# Stands where a reasoning block needs a signature and its provider gave none. Recognised when it comes back.
UNSIGNED = "bXdzLnVuc2lnbmVkLnYx"
MEDIA_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")

_tagged = TaggedDecoder(
    {**schema.STRUCTS, "tool_result": schema.LooseToolResult},
    names_kind=True,
)
_items = msgspec.json.Decoder(list[Raw])
_text = msgspec.json.Decoder(str)
_part = msgspec.json.Decoder(schema.SourcePart)
_encode = msgspec.json.Encoder().encode


class Blocks(Protocol):
    """A repeated field of content blocks."""

    def add(self) -> pb.ContentBlock: ...


def add_block(blocks: Blocks, block: msgspec.Struct, path: Path, role: "pb.Role.ValueType" = pb.ROLE_USER) -> None:
    """Appends the neutral form of a decoded block of a turn; empty text is dropped."""
    if type(block) is schema.TextParam:
        if block.text:
            new = blocks.add()
            new.text.text = block.text
            _keep(new, citations=block.citations)
    else:
        tag, writer, roles = _WRITERS[type(block)]
        if role not in roles:
            raise bad_value(path, f"`{tag}` blocks can only be in {_words(roles)} messages")
        writer(blocks.add(), block, (*path, tag))


def _words(roles: "tuple[pb.Role.ValueType, ...]") -> str:
    return " or ".join(f"`{pb.Role.Name(role).removeprefix('ROLE_').lower()}`" for role in roles)


def add_block_tolerantly(blocks: Blocks, raw: Raw, path: Path, role: "pb.Role.ValueType" = pb.ROLE_USER) -> None:
    """Appends the neutral form of a block as received, whatever its kind."""
    value = _tagged.decode(raw, path)
    if isinstance(value, Extended):
        added = _Added(blocks)
        add_block(added, value.value, path, role)
        if added.last is not None and added.last.HasField("opaque"):
            added.last.opaque.json = _merge(added.last.opaque.json, value.extra_json)
        elif added.last is not None:
            added.last.extra_json = _merge(added.last.extra_json, value.extra_json)
    elif isinstance(value, msgspec.Struct):
        add_block(blocks, value, path, role)
    else:
        _make_opaque(blocks.add(), value.type, without_cache_control(raw, path))


Writer = Callable[[pb.ContentBlock, Any, Path], None]


class _Added:
    """Passes `add` on and remembers what was added."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self.last: pb.ContentBlock | None = None

    def add(self) -> pb.ContentBlock:
        self.last = self._blocks.add()
        return self.last


def _merge(left: str, right: str) -> str:
    return f"{left[:-1]},{right[1:]}" if left and right else left or right


def _keep(block: pb.ContentBlock, **members: schema.Json) -> None:
    kept = {name: value for name, value in members.items() if value is not msgspec.UNSET and is_set(value)}
    if kept:
        block.extra_json = object_text(kept)


def _make_opaque(new: pb.ContentBlock, kind: str, json: Raw, text: str = "") -> None:
    new.opaque.dialect = pb.DIALECT_ANTHROPIC
    new.opaque.type = kind
    new.opaque.json = text_of(json)
    new.opaque.text = text


def _image(new: pb.ContentBlock, block: schema.ImageParam, path: Path) -> None:
    source = block.source
    if source.type == "base64" and source.data is not None:
        new.image.base64_data = source.data
        new.image.media_type = source.media_type or "image/jpeg"
    elif source.type == "url" and source.url is not None:
        new.image.url = source.url
    elif source.type == "file" and source.file_id is not None:
        new.image.file_id = source.file_id
    else:
        raise _bad_source(source.type, ("base64", "url", "file"), (*path, "source"))
    _check_image(source, (*path, "source", source.type))
    _keep(new, transformations=block.transformations)


def _check_image(source: schema.ImageSource, path: Path) -> None:
    if source.data is not None and not source.data:
        raise bad_value(path, "image cannot be empty")
    if source.data is not None and source.media_type and source.media_type not in MEDIA_TYPES:
        raise bad_value((*path, "media_type"), "Input should be 'image/jpeg', 'image/png', 'image/gif' or 'image/webp'")


def _document(new: pb.ContentBlock, block: schema.DocumentParam, path: Path) -> None:
    source, document = block.source, new.document
    if source.type == "content" and source.content is not msgspec.UNSET:
        _content_document(new, block, source.content, path)
        return
    if source.type == "base64" and source.data is not None:
        document.base64_data = source.data
        document.media_type = source.media_type or "application/pdf"
    elif source.type == "text" and source.data is not None:
        document.text = source.data
        document.media_type = source.media_type or "text/plain"
    elif source.type == "url" and source.url is not None:
        document.url = source.url
    elif source.type == "file" and source.file_id is not None:
        document.file_id = source.file_id
    else:
        raise _bad_source(source.type, ("base64", "text", "content", "url", "file"), (*path, "source"))
    document.title = block.title or ""
    document.context = block.context or ""
    _keep(new, citations=block.citations)


def _content_document(new: pb.ContentBlock, block: schema.DocumentParam, content: Raw, path: Path) -> None:
    """A document of blocks has places that citations point at, so it is kept whole; elsewhere it is its text."""
    place = (*path, "source", "content")
    texts = [decode(_text, content, place)] if bytes(content)[:1] == b'"' else _texts(content, place)
    block.cache_control = msgspec.UNSET
    block.source.content = without_cache_control(content, path)
    text = "\n".join(line for line in (block.title, block.context, *texts) if line)
    _make_opaque(new, "document", Raw(_encode(block)), text)


def _search_result(new: pb.ContentBlock, block: schema.SearchResultParam, path: Path) -> None:
    texts = _texts(block.content, (*path, "content"))
    block.cache_control = msgspec.UNSET
    block.content = without_cache_control(block.content, path)
    text = "\n".join(line for line in (block.title, block.source, *texts) if line)
    _make_opaque(new, "search_result", Raw(_encode(block)), text)


def _texts(blocks: Raw, path: Path) -> list[str]:
    """The texts of blocks inside a block, of which nothing else is read."""
    items: list[Raw] = decode(_items, blocks, path)
    parts = [decode(_part, item, (*path, at)) for at, item in enumerate(items)]
    for at, part in enumerate(parts):
        if part.type == "text" and part.text is None:
            raise missing((*path, at, "text"))
    return [part.text for part in parts if part.text]


def _bad_source(kind: str, kinds: tuple[str, ...], path: Path) -> Exception:
    if kind not in kinds:
        return bad_value((*path, "type"), f"Input should be one of {', '.join(map(repr, kinds))}")
    member = {"base64": "data", "text": "data", "url": "url", "file": "file_id", "content": "content"}[kind]
    return missing((*path, kind, member))


def _thinking(new: pb.ContentBlock, block: schema.ThinkingParam, _path: Path) -> None:
    new.thinking.text = block.thinking
    new.thinking.signature = block.signature if block.signature and block.signature != UNSIGNED else ""


def _redacted(new: pb.ContentBlock, block: schema.RedactedThinkingParam, _path: Path) -> None:
    new.redacted_thinking.data = block.data


def _tool_use(new: pb.ContentBlock, block: schema.ToolUseParam, path: Path) -> None:
    for name in ("id", "name"):
        if not getattr(block, name):
            raise bad_value((*path, name), "may not be empty")
    arguments = bytes(block.input)
    if arguments[:1] != b"{":
        raise bad_value((*path, "input"), "Input should be a valid dictionary")
    new.tool_call.id = block.id
    new.tool_call.name = block.name
    new.tool_call.arguments_json = text_of(arguments)
    _keep(new, caller=block.caller, toolset_name=block.toolset_name)


_PARTS_MAX = 10_000
_IN_RESULTS = ("text", "image", "document", "opaque")


def _tool_result(new: pb.ContentBlock, block: schema.ToolResultParam | schema.LooseToolResult, path: Path) -> None:
    if not block.tool_use_id:
        raise bad_value((*path, "tool_use_id"), "may not be empty")
    result = new.tool_result
    result.tool_call_id = block.tool_use_id
    result.is_error = bool(block.is_error)
    if isinstance(block.content, str):
        if block.content:
            result.content.add().text.text = block.content
    elif block.content:
        _add_parts(result, block.content, path)
    _keep(new, toolset_name=block.toolset_name)


def _add_parts(result: pb.ToolResultBlock, parts: "Sequence[msgspec.Struct | Raw]", path: Path) -> None:
    if len(parts) > _PARTS_MAX:
        raise bad_value((*path, "content"), f"at most {_PARTS_MAX} blocks are accepted")
    for index, part in enumerate(parts):
        place = (*path, "content", index)
        if isinstance(part, Raw):
            add_block_tolerantly(result.content, part, place)
            if result.content and result.content[-1].WhichOneof("kind") not in _IN_RESULTS:
                raise bad_value((*place, "type"), "This block has no place in a tool_result")
        else:
            add_block(result.content, part, place)


_SAID = (pb.ROLE_USER, pb.ROLE_ASSISTANT)
_ASKED = (pb.ROLE_USER,)
_ANSWERED = (pb.ROLE_ASSISTANT,)
_WRITERS: dict[type[msgspec.Struct], "tuple[str, Any, tuple[pb.Role.ValueType, ...]]"] = {
    schema.ImageParam: ("image", _image, _SAID),
    schema.DocumentParam: ("document", _document, _SAID),
    schema.SearchResultParam: ("search_result", _search_result, _SAID),
    schema.ThinkingParam: ("thinking", _thinking, _ANSWERED),
    schema.RedactedThinkingParam: ("redacted_thinking", _redacted, _ANSWERED),
    schema.ToolUseParam: ("tool_use", _tool_use, _ANSWERED),
    schema.ToolResultParam: ("tool_result", _tool_result, _ASKED),
    schema.LooseToolResult: ("tool_result", _tool_result, _ASKED),
}
