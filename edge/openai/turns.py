"""Turns of Chat Completions to neutral messages: roles, parts, tool calls and their results.

Owns that translation; refuses to judge the order of turns, which an upstream knows better.
"""

from collections.abc import Sequence

import msgspec
from msgspec import Raw
from mws.inference.v1 import generation_pb2 as pb

from edge.decoding import Extended, Opaque, TaggedDecoder, decode, fields_of, text_of
from edge.openai import schema
from edge.problems import BadFieldError, Path, bad_value, missing

_loose = msgspec.json.Decoder(schema.LooseMessage)
_call = msgspec.json.Decoder(schema.ToolCallParam)
_any_call = msgspec.json.Decoder(schema.AnyToolCall)
_encode = msgspec.json.Encoder().encode
_parts = TaggedDecoder(schema.STRUCTS)
_ROLES = {
    "developer": pb.ROLE_SYSTEM,
    "system": pb.ROLE_SYSTEM,
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
    "tool": pb.ROLE_USER,
    "function": pb.ROLE_USER,
}
_CALL_MEMBERS = ("id", "type", "function", "index")
Item = schema.MessageParam | schema.LooseMessage


class Turns:
    """Appends turns to one generation. Results of tools that follow each other share one message."""

    def __init__(self, generation: pb.Generation) -> None:
        self._generation = generation
        self._results: pb.Message | None = None
        self._legacy_calls = 0

    def add(self, item: schema.MessageParam | Raw, at: int) -> None:
        """Appends one turn, decoded or as received."""
        path: Path = ("messages", at)
        turn: Item = decode(_loose, item, path) if isinstance(item, Raw) else item
        role = _ROLES.get(turn.role)
        if role is None:
            raise bad_value((*path, "role"), f"{turn.role[:40]!r} is not one of {', '.join(map(repr, _ROLES))}")
        if turn.role in ("tool", "function"):
            self._add_result(turn, path)
            return
        self._results = None
        message = self._generation.messages.add(role=role, name=turn.name or "")
        if role == pb.ROLE_ASSISTANT:
            self._add_answer(message, turn, path)
            return
        if turn.content is None:
            raise _null_content(path)
        _add_content(message, turn.content, (*path, "content"))
        if not message.content:
            if role == pb.ROLE_USER:
                message.content.add().text.text = ""
            else:
                del self._generation.messages[-1]

    def _add_result(self, turn: Item, path: Path) -> None:
        if turn.role == "tool":
            if not turn.tool_call_id:
                raise missing((*path, "tool_call_id"))
            call_id = turn.tool_call_id
        else:
            if not turn.name:
                raise missing((*path, "name"))
            call_id = f"call_function_{self._legacy_calls}"
        if self._results is None:
            self._results = self._generation.messages.add(role=pb.ROLE_USER)
        result = self._results.content.add().tool_result
        result.tool_call_id = call_id
        _add_content(result, turn.content or "", (*path, "content"))

    def _add_answer(self, message: pb.Message, turn: Item, path: Path) -> None:
        if turn.reasoning_content:
            message.content.add().thinking.text = turn.reasoning_content
        _add_content(message, turn.content or "", (*path, "content"))
        if turn.refusal:
            message.content.add().text.text = turn.refusal
        calls: Sequence[schema.ToolCallParam | Raw] = turn.tool_calls or ()
        for index, call in enumerate(calls):
            _add_call(message, call, (*path, "tool_calls", index))
        if turn.function_call is not None:
            self._legacy_calls += 1
            target = message.content.add().tool_call
            target.id = f"call_function_{self._legacy_calls}"
            target.name = turn.function_call.name
            target.arguments_json = turn.function_call.arguments or ""


def _null_content(path: Path) -> BadFieldError:
    return BadFieldError(
        (*path, "content"), "type", "Expected string or array, got null", expected=("string", "array"), got="null"
    )


def _add_content(
    target: pb.Message | pb.ToolResultBlock,
    content: "str | list[schema.PartParam] | list[Raw]",
    path: Path,
) -> None:
    if isinstance(content, str):
        if content:
            target.content.add().text.text = content
        return
    for index, part in enumerate(content):
        if isinstance(part, Raw):
            _add_part_tolerantly(target, part, (*path, index))
        else:
            _add_part(target, part, (*path, index))


def _add_part_tolerantly(target: pb.Message | pb.ToolResultBlock, raw: Raw, path: Path) -> None:
    value = _parts.decode(raw, path)
    if isinstance(value, Opaque):
        opaque = target.content.add().opaque
        opaque.dialect, opaque.type, opaque.json = pb.DIALECT_OPENAI, value.type, value.json
        return
    count = len(target.content)
    _add_part(target, value.value if isinstance(value, Extended) else value, path)
    if isinstance(value, Extended) and len(target.content) > count:
        target.content[-1].extra_json = value.extra_json


def _add_part(target: pb.Message | pb.ToolResultBlock, part: msgspec.Struct, path: Path) -> None:
    if isinstance(part, schema.TextPart):
        if part.text:
            target.content.add().text.text = part.text
    elif isinstance(part, schema.RefusalPart):
        if part.refusal:
            target.content.add().text.text = part.refusal
    elif isinstance(part, schema.ImagePart):
        _add_image(target.content.add().image, part.image_url, path)
    elif isinstance(part, schema.AudioPart):
        opaque = target.content.add().opaque
        opaque.dialect, opaque.type, opaque.json = pb.DIALECT_OPENAI, "input_audio", _encode(part).decode()
    elif isinstance(part, schema.FilePart):
        _add_file(target.content.add().document, part.file, path)


def _add_image(image: pb.ImageBlock, source: schema.ImageUrl, path: Path) -> None:
    image.detail = source.detail or ""
    if source.url.startswith("data:"):
        image.media_type, image.base64_data = _data_url(source.url, (*path, "image_url", "url"))
    elif source.url.startswith(("http://", "https://")):
        image.url = source.url
    else:
        raise bad_value((*path, "image_url", "url"), "Expected an http(s) URL or a base64 data URL")


def _add_file(document: pb.DocumentBlock, source: schema.FileSource, path: Path) -> None:
    document.title = source.filename or ""
    if source.file_id is not None:
        document.file_id = source.file_id
    elif source.file_data is None:
        raise missing((*path, "file", "file_data"))
    elif source.file_data.startswith("data:"):
        document.media_type, document.base64_data = _data_url(source.file_data, (*path, "file", "file_data"))
    else:
        document.base64_data = source.file_data


def _data_url(url: str, path: Path) -> tuple[str, str]:
    head, comma, data = url[5:].partition(",")
    media_type, *options = head.split(";")
    if not comma or "base64" not in (option.strip().lower() for option in options):
        raise bad_value(path, "Expected a base64 data URL, such as data:image/png;base64,...")
    return media_type.strip(), data


def _add_call(message: pb.Message, call: schema.ToolCallParam | Raw, path: Path) -> None:
    extra = ""
    if isinstance(call, Raw):
        kind = decode(_any_call, call, path)
        if kind.type != "function":
            opaque = message.content.add().opaque
            opaque.dialect, opaque.type, opaque.json = pb.DIALECT_OPENAI, kind.type, text_of(call)
            return
        members = fields_of(call, path)
        unknown = {name: value for name, value in members.items() if name not in _CALL_MEMBERS}
        extra = text_of(_encode(unknown)) if unknown else ""
        known = {name: value for name, value in members.items() if name in _CALL_MEMBERS}
        call = decode(_call, _encode(known), path)
    if not call.function.name:
        raise bad_value((*path, "function", "name"), "may not be empty")
    block = message.content.add(extra_json=extra)
    block.tool_call.id = call.id
    block.tool_call.name = call.function.name
    block.tool_call.arguments_json = call.function.arguments or ""
