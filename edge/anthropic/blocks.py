"""Content blocks of Anthropic Messages to neutral blocks, unknown kinds and unknown members kept as JSON.

Owns that translation; refuses to judge the order of blocks, which an upstream knows better.
"""

from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from msgspec import Raw
from mws.inference.v1 import generation_pb2 as pb

from edge.anthropic import schema
from edge.decoding import Extended, Opaque, TaggedDecoder, decode, is_set, object_text, text_of
from edge.problems import Path, bad_value, missing

# Stands where a reasoning block needs a signature and its provider gave none. Recognised when it comes back.
UNSIGNED = "bXdzLnVuc2lnbmVkLnYx"

_tagged = TaggedDecoder({**schema.STRUCTS, "tool_result": schema.LooseToolResult})
_texts = msgspec.json.Decoder(str | list[schema.TextParam])


class Blocks(Protocol):
    """A repeated field of content blocks."""

    def add(self) -> pb.ContentBlock: ...


def add_block(blocks: Blocks, block: msgspec.Struct, path: Path) -> None:
    """Appends the neutral form of a decoded block; empty text is dropped."""
    if type(block) is schema.TextParam:
        if block.text:
            new = blocks.add()
            new.text.text = block.text
            _keep(new, citations=block.citations)
    else:
        writer: Writer = _WRITERS[type(block)]
        writer(blocks.add(), block, path)


def add_block_tolerantly(blocks: Blocks, raw: Raw, path: Path) -> None:
    """Appends the neutral form of a block as received, whatever its kind."""
    value = _tagged.decode(raw, path)
    if isinstance(value, Opaque):
        new = blocks.add()
        new.opaque.dialect = pb.DIALECT_ANTHROPIC
        new.opaque.type = value.type
        new.opaque.json = value.json
        return
    if not isinstance(value, Extended):
        add_block(blocks, value, path)
        return
    added = _Added(blocks)
    add_block(added, value.value, path)
    if added.last is not None:
        added.last.extra_json = _merge(added.last.extra_json, value.extra_json)


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
    _keep(new, transformations=block.transformations)


def _document(new: pb.ContentBlock, block: schema.DocumentParam, path: Path) -> None:
    source, document = block.source, new.document
    if source.type == "base64" and source.data is not None:
        document.base64_data = source.data
        document.media_type = source.media_type or "application/pdf"
    elif source.type == "text" and source.data is not None:
        document.text = source.data
        document.media_type = source.media_type or "text/plain"
    elif source.type == "content" and source.content is not msgspec.UNSET:
        document.text = _joined(source.content, (*path, "source", "content"))
        document.media_type = "text/plain"
    elif source.type == "url" and source.url is not None:
        document.url = source.url
    elif source.type == "file" and source.file_id is not None:
        document.file_id = source.file_id
    else:
        raise _bad_source(source.type, ("base64", "text", "content", "url", "file"), (*path, "source"))
    document.title = block.title or ""
    document.context = block.context or ""
    _keep(new, citations=block.citations)


def _joined(content: Raw, path: Path) -> str:
    value = decode(_texts, content, path)
    return value if isinstance(value, str) else "\n".join(part.text for part in value)


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
        for index, part in enumerate(block.content):
            place = (*path, "content", index)
            if isinstance(part, Raw):
                add_block_tolerantly(result.content, part, place)
            else:
                add_block(result.content, part, place)
    _keep(new, toolset_name=block.toolset_name)


_WRITERS: dict[type[msgspec.Struct], Any] = {
    schema.ImageParam: _image,
    schema.DocumentParam: _document,
    schema.ThinkingParam: _thinking,
    schema.RedactedThinkingParam: _redacted,
    schema.ToolUseParam: _tool_use,
    schema.ToolResultParam: _tool_result,
    schema.LooseToolResult: _tool_result,
}
