"""Writes neutral turns as Anthropic Messages turns: blocks with their fields as received, results first, nothing empty.

Owns the order and form of turns; refuses to know settings and tools (`anthropic_request`).
"""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from mws.inference.v1 import generation_pb2 as pb

from services.routing_and_inference.upstreams import errors, tool_names
from services.routing_and_inference.upstreams.runs import as_object, is_json

_OMITTED = "[content omitted]"  # an empty turn is refused
LONGEST_NAME = 128  # of a tool, in this dialect
_UNSAYABLE = {"input_audio": "audio is", "custom": "calls of tools of type 'custom' are"}
_DEFAULT_IMAGE = "image/jpeg"
_DEFAULT_DOCUMENT = "application/pdf"
_EMPTY_OBJECT = msgspec.Raw(b"{}")

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

Block = dict[str, Any] | msgspec.Raw


class TurnWriter:
    """Collects the turns of one request. `same_dialect`: the caller speaks this dialect itself.

    `keeps_system`: instructions inside the conversation stay what they are; else the user says them.
    """

    def __init__(self, *, same_dialect: bool, tool_id: Callable[[str], str], keeps_system: bool) -> None:
        self._same_dialect = same_dialect
        self._keeps_system = keeps_system
        self._tool_id = tool_id
        self._held: list[Block] = []  # instructions that stood between calls and their results
        self._calls_open = False
        self.system: list[Block] = []
        self.turns: list[dict[str, Any]] = []

    def add(self, message: pb.Message) -> None:
        if message.role == pb.ROLE_SYSTEM:
            self._add_system(message)
        elif message.role == pb.ROLE_ASSISTANT:
            self._add_answer(message)
        else:
            self._add_user(message)

    def finish(self) -> None:
        """Closes the last turn: held instructions are placed, a prefill loses the white space that is refused there."""
        if self._held:
            self._put("user", self._held)
        last = self.turns[-1] if self.turns else None
        if last is None or last["role"] != "assistant" or not last["content"]:
            return
        block = last["content"][-1]
        if isinstance(block, dict) and block["type"] == "text":
            block["text"] = block["text"].rstrip()
            if not block["text"]:
                last["content"].pop()
        if not last["content"]:
            self.turns.pop()

    def _add_system(self, message: pb.Message) -> None:
        blocks = self._blocks(message.content)
        if not blocks:
            return
        if not self.turns:
            self.system.extend(blocks)
        elif self._keeps_system:
            self.turns.append({"role": "system", "content": blocks})
        elif self._calls_open:
            self._held.extend(blocks)
        else:
            self._put("user", blocks)

    def _add_user(self, message: pb.Message) -> None:
        results = self._blocks(block for block in message.content if block.HasField("tool_result"))
        others = self._blocks(block for block in message.content if not block.HasField("tool_result"))
        if results:
            self._calls_open = False
            others = self._held + others
            self._held = []
        self._put("user", results + others or [_text(_OMITTED)])

    def _add_answer(self, message: pb.Message) -> None:
        if self._held:
            self._put("user", self._held)
            self._held = []
        blocks = self._blocks(message.content)
        if blocks:
            self._put("assistant", blocks)
        self._calls_open = any(block.HasField("tool_call") for block in message.content)

    def _put(self, role: str, blocks: list[Block]) -> None:
        """Appends to the last turn if it is of the same role: the dialect reads adjacent turns of one role as one."""
        if self.turns and self.turns[-1]["role"] == role:
            content = self.turns[-1]["content"]
            is_result = [isinstance(block, dict) and block["type"] == "tool_result" for block in content]
            after_results = is_result.index(False) if False in is_result else len(content)
            for block in blocks:
                if isinstance(block, dict) and block["type"] == "tool_result":
                    content.insert(after_results, block)
                    after_results += 1
                else:
                    content.append(block)
        else:
            self.turns.append({"role": role, "content": list(blocks)})

    def _blocks(self, blocks: Iterable[pb.ContentBlock]) -> list[Block]:
        return [written for block in blocks if (written := self._block(block)) is not None]

    def _block(self, block: pb.ContentBlock) -> Block | None:
        kind = block.WhichOneof("kind")
        if kind == "opaque":
            return self._opaque(block.opaque)
        if kind == "text":
            written = _text(block.text.text) if block.text.text else None
        elif kind == "tool_call":
            written = self._tool_use(block.tool_call)
        elif kind == "tool_result":
            written = self._tool_result(block.tool_result)
        else:
            written = _WRITERS[kind](getattr(block, kind)) if kind else None
        if written is not None and self._same_dialect and block.extra_json:
            written = {**_members(block.extra_json), **written}
        return written

    def _opaque(self, block: pb.OpaqueBlock) -> Block | None:
        if block.dialect == pb.DIALECT_ANTHROPIC:
            return msgspec.Raw(block.json)
        if block.type in _UNSAYABLE:
            raise errors.rejected(f"{_UNSAYABLE[block.type]} not available with the model that serves this call")
        return _text(block.text) if block.text else None

    def _tool_use(self, call: pb.ToolCallBlock) -> dict[str, Any]:
        return {
            "type": "tool_use",
            "id": self._tool_id(call.id),
            "name": tool_names.of_call(call.name, LONGEST_NAME),
            "input": _input(call.arguments_json),
        }

    def _tool_result(self, result: pb.ToolResultBlock) -> dict[str, Any]:
        written: dict[str, Any] = {"type": "tool_result", "tool_use_id": self._tool_id(result.tool_call_id)}
        content = self._blocks(result.content)
        if content:
            written["content"] = content
        if result.is_error:
            written["is_error"] = True
        return written


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _input(arguments: str) -> msgspec.Raw:
    """The dialect takes objects only; what a model wrote instead is wrapped, and half an object is lost."""
    if arguments.lstrip().startswith("{"):
        return msgspec.Raw(arguments) if is_json(arguments) else _EMPTY_OBJECT
    repaired = as_object(arguments)
    return msgspec.Raw(repaired) if repaired and is_json(repaired) else _EMPTY_OBJECT


def _image(image: pb.ImageBlock) -> dict[str, Any] | None:
    source = image.WhichOneof("source")
    if source == "base64_data":
        written = {"type": "base64", "media_type": image.media_type or _DEFAULT_IMAGE, "data": image.base64_data}
    elif source == "url":
        written = {"type": "url", "url": image.url}
    elif source == "file_id":
        written = {"type": "file", "file_id": image.file_id}
    else:
        return None
    return {"type": "image", "source": written}


def _document(document: pb.DocumentBlock) -> dict[str, Any] | None:
    source = document.WhichOneof("source")
    if source == "base64_data":
        media_type = document.media_type or _DEFAULT_DOCUMENT
        written = {"type": "base64", "media_type": media_type, "data": document.base64_data}
    elif source == "text":
        written = {"type": "text", "media_type": "text/plain", "data": document.text}
    elif source == "url":
        written = {"type": "url", "url": document.url}
    elif source == "file_id":
        written = {"type": "file", "file_id": document.file_id}
    else:
        return None
    block: dict[str, Any] = {"type": "document", "source": written}
    if document.title:
        block["title"] = document.title
    if document.context:
        block["context"] = document.context
    return block


def _thinking(thinking: pb.ThinkingBlock) -> dict[str, Any] | None:
    """Reasoning without its provider's proof would be refused."""
    if not thinking.signature:
        return None
    return {"type": "thinking", "thinking": thinking.text, "signature": thinking.signature}


def _redacted(thinking: pb.RedactedThinkingBlock) -> dict[str, Any]:
    return {"type": "redacted_thinking", "data": thinking.data}


_WRITERS: dict[str, Callable[[Any], dict[str, Any] | None]] = {
    "image": _image,
    "document": _document,
    "thinking": _thinking,
    "redacted_thinking": _redacted,
}
