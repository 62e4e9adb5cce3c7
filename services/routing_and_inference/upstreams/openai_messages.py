"""Writes neutral turns as Chat Completions messages: results of tools first, nothing between a call and its results.

Owns the order and form of messages; refuses to know settings and tools (`openai_request`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from mws.inference.v1 import generation_pb2 as pb

_OMITTED = "[content omitted]"  # an empty turn is refused by upstreams
_DEFAULT_IMAGE = "image/jpeg"
_BILLING_LINE = "x-anthropic-billing-header"  # changes with every request, so it would defeat every prefix cache

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

Part = dict[str, Any] | msgspec.Raw


def write_messages(
    generation: pb.Generation, dialect: "pb.Dialect.ValueType", tool_names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The `messages` of the request, for a caller of the given dialect."""
    writer = _Writer(dialect, tool_names)
    for message in generation.messages:
        writer.add(message)
    return writer.finish()


class _Writer:
    def __init__(self, dialect: "pb.Dialect.ValueType", tool_names: Mapping[str, str]) -> None:
        self._same_dialect = dialect == pb.DIALECT_OPENAI
        self._merges = dialect == pb.DIALECT_ANTHROPIC  # that dialect defines adjacent turns of one role as one turn
        self._tool_names = tool_names
        self._out: list[dict[str, Any]] = []
        self._unanswered: set[str] = set()  # calls whose results have not come yet
        self._held: list[dict[str, Any]] = []  # what stood between calls and their results

    def add(self, message: pb.Message) -> None:
        role = message.role
        if role == pb.ROLE_ASSISTANT:
            self._release()
            self._add_answer(message)
        elif role == pb.ROLE_SYSTEM:
            self._add_system(message)
        else:
            self._add_user(message)

    def finish(self) -> list[dict[str, Any]]:
        self._release()
        return self._out

    def _release(self) -> None:
        if self._unanswered:  # nothing is held otherwise
            self._unanswered.clear()
            self._out.extend(self._held)
            self._held.clear()

    def _put(self, message: dict[str, Any]) -> None:
        """Appends a message that is not a result: after the results, when some are still to come."""
        (self._held if self._unanswered else self._out).append(message)

    def _add_system(self, message: pb.Message) -> None:
        texts = [
            block.text.text
            for block in message.content
            if block.HasField("text") and block.text.text and not block.text.text.startswith(_BILLING_LINE)
        ]
        if texts:
            self._put(_named({"role": "system", "content": "\n\n".join(texts)}, message))

    def _add_user(self, message: pb.Message) -> None:
        if text := _lone_text(message):
            self._put_user(_named({"role": "user", "content": text}, message))
            return
        parts: list[Part] = []
        results = 0
        for block in message.content:
            if block.HasField("tool_result"):
                results += 1
                parts[:0] = self._add_result(block.tool_result)
            else:
                parts.extend(self._parts(block))
        if results and not self._unanswered:
            held, self._held = self._held, []
            self._out.extend(held)
        if not parts:
            if results:
                return
            parts = [{"type": "text", "text": _OMITTED}]
        self._put_user(_named({"role": "user", "content": _plain(parts)}, message))

    def _put_user(self, message: dict[str, Any]) -> None:
        line = self._held if self._unanswered else self._out
        previous = line[-1] if line else None
        if self._merges and previous is not None and previous["role"] == "user":
            previous["content"] = _joined(previous["content"], message["content"])
        else:
            line.append(message)

    def _add_result(self, result: pb.ToolResultBlock) -> list[Part]:
        """Appends a `tool` message; gives the parts that have no place in it."""
        texts: list[str] = []
        others: list[Part] = []
        for block in result.content:
            if block.HasField("text"):
                texts.append(block.text.text)
            else:
                for part in self._parts(block):
                    if isinstance(part, dict) and part["type"] == "text":
                        texts.append(part["text"])
                    else:
                        others.append(part)
        text = "\n".join(texts)
        if result.is_error and not text.lower().startswith("error"):
            text = f"Error: {text}"
        self._out.append({"role": "tool", "tool_call_id": result.tool_call_id, "content": text})
        self._unanswered.discard(result.tool_call_id)
        if others:
            others.insert(0, {"type": "text", "text": f"[content of the result of tool call {result.tool_call_id}]"})
        return others

    def _parts(self, block: pb.ContentBlock) -> list[Part]:
        """A user's block as parts; empty for what this dialect cannot say."""
        kind = block.WhichOneof("kind")
        if kind == "text":
            part: Part | None = {"type": "text", "text": block.text.text} if block.text.text else None
        elif kind == "image":
            part = _image(block.image)
        elif kind == "document":
            part = _document(block.document)
        elif kind == "opaque" and block.opaque.dialect == pb.DIALECT_OPENAI:
            part = msgspec.Raw(block.opaque.json)
        elif kind == "opaque" and block.opaque.text:
            part = {"type": "text", "text": block.opaque.text}
        else:
            part = None
        if part is None:
            return []
        if self._same_dialect and block.extra_json and isinstance(part, dict):
            part = {**_members(block.extra_json), **part}
        return [part]

    def _add_answer(self, message: pb.Message) -> None:
        text = "".join(block.text.text for block in message.content if block.HasField("text"))
        calls = [call for block in message.content for call in self._calls(block)]
        previous = self._out[-1] if self._out else None
        if self._merges and previous is not None and previous["role"] == "assistant":
            if text:
                previous["content"] = f"{previous['content'] or ''}{text}"
            if calls:
                previous.setdefault("tool_calls", []).extend(calls)
            return
        answer: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
        if calls:
            answer["tool_calls"] = calls
        self._out.append(_named(answer, message))

    def _calls(self, block: pb.ContentBlock) -> list[Part]:
        """The entry of `tool_calls` that a block is, if it is one. Reasoning of earlier turns is not sent back."""
        if block.HasField("opaque") and block.opaque.dialect == pb.DIALECT_OPENAI:
            return [msgspec.Raw(block.opaque.json)]
        if not block.HasField("tool_call"):
            return []
        call = block.tool_call
        self._unanswered.add(call.id)
        name = self._tool_names.get(call.name, call.name)
        written: dict[str, Any] = {
            "id": call.id,
            "type": "function",
            "function": {"name": name, "arguments": call.arguments_json or "{}"},
        }
        if self._same_dialect and block.extra_json:
            written = {**_members(block.extra_json), **written}
        return [written]


def _lone_text(message: pb.Message) -> str:
    """The text of a message that is nothing else, which needs no parts; empty for any other."""
    if len(message.content) != 1:
        return ""
    block = message.content[0]
    return "" if block.extra_json else block.text.text


def _named(written: dict[str, Any], message: pb.Message) -> dict[str, Any]:
    if message.name:
        written["name"] = message.name
    return written


def _plain(parts: list[Part]) -> str | list[Part]:
    """A single text as a plain string: some chat templates know nothing else."""
    first = parts[0]
    if len(parts) == 1 and isinstance(first, dict) and first.keys() == {"type", "text"}:
        text: str = first["text"]
        return text
    return parts


def _joined(first: str | Sequence[Part], second: str | Sequence[Part]) -> str | list[Part]:
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return [*_as_parts(first), *_as_parts(second)]


def _as_parts(content: str | Sequence[Part]) -> Sequence[Part]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _image(image: pb.ImageBlock) -> Part | None:
    source = image.WhichOneof("source")
    if source == "url":
        url = image.url
    elif source == "base64_data":
        url = f"data:{image.media_type or _DEFAULT_IMAGE};base64,{image.base64_data}"
    else:  # a file's id means nothing elsewhere
        return None
    written: dict[str, Any] = {"url": url}
    if image.detail:
        written["detail"] = image.detail
    return {"type": "image_url", "image_url": written}


def _document(document: pb.DocumentBlock) -> Part:
    source = document.WhichOneof("source")
    if source == "text":
        lines = [line for line in (document.title, document.context, document.text) if line]
        return {"type": "text", "text": "\n".join(lines)}
    if source == "base64_data":
        media_type = document.media_type or "application/pdf"
        file = {
            "filename": document.title or "document.pdf",
            "file_data": f"data:{media_type};base64,{document.base64_data}",
        }
        return {"type": "file", "file": file}
    if source == "file_id":
        return {"type": "file", "file": {"file_id": document.file_id}}
    title = f"{document.title}: " if document.title else ""
    return {"type": "text", "text": f"[document {title}{document.url}]"}
