"""Reads a prompt once: checks the rules of the contract, measures it, and takes images out for profiles without vision.

Owns what may stand in a `Generation`; refuses to know prices, and leaves other people's JSON as it came.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import msgspec
from mws.inference.v1 import generation_pb2 as pb

from services.routing_and_inference.bounding import PromptSize, TextMeter, estimated_input_tokens
from services.runtime.errors import FieldViolation, InvalidRequestError

MAX_MESSAGES = 100_000
MAX_TOOLS = 1_024
MAX_TOOL_NAME = 128
MAX_VIOLATIONS = 20  # enough to repair a request; the rest would only repeat them
OMITTED_IMAGE = "[image omitted]"


class Prompt(msgspec.Struct, frozen=True):
    """A checked prompt with its size; `images` that the profile cannot see are not part of the size."""

    size: PromptSize
    estimated_tokens: int
    dropped_images: int


def head_of(generation: pb.Generation) -> bytes:
    """What all turns of a conversation have in common: everything up to its first message of the user."""
    digest = hashlib.blake2b(digest_size=16)
    for message in generation.messages:
        digest.update(message.SerializeToString(deterministic=True))
        if message.role == pb.ROLE_USER:
            break
    return digest.digest()


def read_prompt(generation: pb.Generation, *, has_vision: bool) -> Prompt:
    """Checks and measures a prompt. Raises InvalidRequestError naming the fields at fault."""
    reader = _Reader()
    reader.read(generation)
    if reader.violations:
        raise InvalidRequestError(_summary(reader.violations), violations=reader.violations)
    size = PromptSize(
        ascii_characters=reader.text.ascii_characters,
        other_characters=reader.text.other_characters,
        images=reader.images if has_vision else 0,
        documents=reader.documents,
        document_bytes=reader.document_bytes,
        has_unknown_document=reader.has_unknown_document,
    )
    return Prompt(size, estimated_input_tokens(size), 0 if has_vision else reader.images)


def drop_images(generation: pb.Generation) -> None:
    """Takes the images out, in place; a turn or a tool's answer that would be empty says that one stood there."""
    for message in generation.messages:
        _drop_images(message.content)


def _drop_images(content: Any) -> None:
    had_image = False
    for position in range(len(content) - 1, -1, -1):
        block = content[position]
        if block.HasField("image"):
            had_image = True
            del content[position]
        elif block.HasField("tool_result"):
            _drop_images(block.tool_result.content)
    if had_image and len(content) == 0:
        content.add().text.text = OMITTED_IMAGE


def _summary(violations: list[FieldViolation]) -> str:
    first = violations[0]
    return f"{first.field}: {first.description}" if first.field else first.description


def compact_json(text: str) -> str | None:
    """The text without the spaces between its tokens; None if it is not JSON."""
    try:
        return msgspec.json.format(text, indent=-1)
    except msgspec.DecodeError:
        return None


class _Reader:
    """One pass over a prompt."""

    def __init__(self) -> None:
        self.text = TextMeter()
        self.images = 0
        self.documents = 0
        self.document_bytes = 0
        self.has_unknown_document = False
        self.violations: list[FieldViolation] = []

    def read(self, generation: pb.Generation) -> None:
        if not 1 <= len(generation.messages) <= MAX_MESSAGES:
            self._refuse("generation.messages", f"1 to {MAX_MESSAGES} messages are needed")
        for index, message in enumerate(generation.messages):
            self._message(index, message)
        if len(generation.tools) > MAX_TOOLS:
            self._refuse("generation.tools", f"at most {MAX_TOOLS} tools")
        for index, tool in enumerate(generation.tools):
            self._tool(index, tool)
        self._check_settings(generation)

    def _message(self, index: int, message: pb.Message) -> None:
        role, content = message.role, message.content
        if role not in _ROLES:
            self._refuse(f"generation.messages[{index}].role", "must be system, user or assistant")
        if not content and role != pb.ROLE_ASSISTANT:
            self._refuse(f"generation.messages[{index}].content", "must not be empty")
        for position, block in enumerate(content):
            self._block(f"generation.messages[{index}]", position, block)

    def _block(self, path: str, position: int, block: pb.ContentBlock) -> None:
        kind = block.WhichOneof("kind")
        if kind == "text":
            self.text.add(block.text.text)
        elif kind is None:
            self._refuse(f"{path}.content[{position}]", "has no kind")
        else:
            _BLOCKS[kind](self, f"{path}.content[{position}].{kind}", getattr(block, kind))
        if block.extra_json and not _is_object(block.extra_json):
            self._refuse(f"{path}.content[{position}].extra_json", "must be a JSON object")

    def _image(self, path: str, image: pb.ImageBlock) -> None:
        if image.WhichOneof("source") is None:
            self._refuse(path, "has no source")
        self.images += 1

    def _document(self, path: str, document: pb.DocumentBlock) -> None:
        source = document.WhichOneof("source")
        if source == "text":
            self.text.add(document.text)
        elif source == "base64_data":
            self.documents += 1
            self.document_bytes += len(document.base64_data) * 3 // 4
        elif source is None:
            self._refuse(path, "has no source")
        else:
            self.documents += 1
            self.has_unknown_document = True
        self.text.add(document.title)
        self.text.add(document.context)

    def _thinking(self, path: str, thinking: pb.ThinkingBlock) -> None:
        self.text.add(thinking.text)

    def _redacted(self, path: str, thinking: pb.RedactedThinkingBlock) -> None:
        self.text.add(thinking.data)

    def _tool_call(self, path: str, call: pb.ToolCallBlock) -> None:
        if not call.id:
            self._refuse(f"{path}.id", "must not be empty")
        if not call.name:
            self._refuse(f"{path}.name", "must not be empty")
        self.text.add(call.name)
        # Models do write arguments that are not JSON, and callers send them back; they count as they are.
        self.text.add(compact_json(call.arguments_json) or call.arguments_json or "{}")

    def _tool_result(self, path: str, result: pb.ToolResultBlock) -> None:
        if not result.tool_call_id:
            self._refuse(f"{path}.tool_call_id", "must not be empty")
        for position, block in enumerate(result.content):
            if block.WhichOneof("kind") not in _IN_TOOL_RESULTS:
                self._refuse(f"{path}.content[{position}]", "must be text, an image, a document or opaque")
            else:
                self._block(path, position, block)

    def _opaque(self, path: str, block: pb.OpaqueBlock) -> None:
        self._check_opaque(path, block)
        self.text.add(block.json)

    def _check_opaque(self, path: str, block: pb.OpaqueBlock) -> None:
        if not _is_object(block.json):
            self._refuse(f"{path}.json", "must be a JSON object")

    def _tool(self, index: int, tool: pb.Tool) -> None:
        path = f"generation.tools[{index}]"
        if tool.HasField("opaque"):
            self._check_opaque(f"{path}.opaque", tool.opaque)
            if (tool.opaque.dialect, tool.opaque.type) != _DEFERRED:
                self.text.add(tool.opaque.json)
            return
        if not 1 <= len(tool.name) <= MAX_TOOL_NAME:
            self._refuse(f"{path}.name", f"must have 1 to {MAX_TOOL_NAME} characters")
        self.text.add(tool.name)
        self.text.add(tool.description)
        if tool.parameters_json:
            schema = compact_json(tool.parameters_json)
            if schema is None or not schema.startswith("{"):
                self._refuse(f"{path}.parameters_json", "must be a JSON object")
            self.text.add(schema or "")
        if tool.extra_json and not _is_object(tool.extra_json):
            self._refuse(f"{path}.extra_json", "must be a JSON object")
        self.text.add(tool.extra_json)  # examples of arguments are read by the model like all of it

    def _check_settings(self, generation: pb.Generation) -> None:
        self._check_ranges(generation)
        if not all(generation.stop_sequences):
            self._refuse("generation.stop_sequences", "must not have an empty one")
        if generation.HasField("tool_choice"):
            self._check_choice(generation.tool_choice)
        if generation.HasField("reasoning"):
            self._check_reasoning(generation.reasoning)
        if generation.HasField("response_format"):
            self._check_format(generation.response_format)
        extra = generation.extra_fields_json
        for name in extra:
            if compact_json(extra[name]) is None:
                self._refuse(f"generation.extra_fields_json[{name}]", "must be JSON")

    def _check_ranges(self, generation: pb.Generation) -> None:
        for name, low, high in _RANGES:
            if generation.HasField(name) and not low <= getattr(generation, name) <= high:
                rule = f"must be at least {low}" if high == _NO_CEILING else f"must be {low} to {high}"
                self._refuse(f"generation.{name}", rule)

    def _check_choice(self, choice: pb.ToolChoice) -> None:
        if choice.mode == pb.ToolChoice.MODE_NAMED and not choice.name:
            self._refuse("generation.tool_choice.name", "is required for a named tool")

    def _check_reasoning(self, reasoning: pb.Reasoning) -> None:
        if reasoning.effort and reasoning.effort not in _EFFORTS:
            self._refuse("generation.reasoning.effort", f"must be one of {', '.join(_EFFORTS)}")
        if reasoning.HasField("budget_tokens") and reasoning.budget_tokens < 1:
            self._refuse("generation.reasoning.budget_tokens", "must be at least 1")

    def _check_format(self, wanted: pb.ResponseFormat) -> None:
        kind = wanted.WhichOneof("kind")
        if kind is None:
            self._refuse("generation.response_format", "has no kind")
        elif kind == "json_schema":
            if not _is_object(wanted.json_schema.schema_json):
                self._refuse("generation.response_format.json_schema.schema_json", "must be a JSON object")
            self.text.add(wanted.json_schema.schema_json)

    def _refuse(self, field: str, description: str) -> None:
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(FieldViolation(field, description))


def _is_object(text: str) -> bool:
    return (compact_json(text) or "").startswith("{")


_BLOCKS: Mapping[str, Callable[[_Reader, str, Any], None]] = {
    "image": _Reader._image,
    "document": _Reader._document,
    "thinking": _Reader._thinking,
    "redacted_thinking": _Reader._redacted,
    "tool_call": _Reader._tool_call,
    "tool_result": _Reader._tool_result,
    "opaque": _Reader._opaque,
}
_DEFERRED = (pb.DIALECT_ANTHROPIC, "custom")  # a tool that the model does not see until something refers to it
_IN_TOOL_RESULTS = ("text", "image", "document", "opaque")
_ROLES = (pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_SYSTEM)
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_NO_CEILING = float("inf")
_Ranged = Literal["max_output_tokens", "temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty"]
_RANGES: Iterable[tuple[_Ranged, float, float]] = (
    ("max_output_tokens", 1, _NO_CEILING),
    ("temperature", 0, 2),
    ("top_p", 0, 1),
    ("top_k", 1, _NO_CEILING),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
)
