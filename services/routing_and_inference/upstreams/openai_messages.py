"""Writes neutral turns as Chat Completions messages: results of tools first, nothing between a call and its results.

Owns the order and form of messages; refuses to know settings and tools (`openai_request`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from mws.inference.v1 import generation_pb2 as pb

from services.routing_and_inference.catalog import Option
from services.routing_and_inference.upstreams import tool_ids, tool_names

_OMITTED = "[content omitted]"  # an empty turn is refused by upstreams
_DEFAULT_IMAGE = "image/jpeg"
_UNSEEN_IMAGE = "[image omitted: it is not fetched from addresses]"
LONGEST_NAME = 64  # of a tool, in this dialect
_BILLING_LINE = "x-anthropic-billing-header"  # changes with every request, so it would defeat every prefix cache

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

Part = dict[str, Any] | msgspec.Raw


class Manners(msgspec.Struct, frozen=True):
    """How an upstream wants its messages, as far as upstreams differ."""

    system_role: str = "system"
    folds_system: bool = False  # instructions inside the conversation are said by the user
    fetches_images: bool = True
    takes_files: bool = True
    reasoning_field: str = ""  # takes reasoning of earlier answers; empty: it is not sent back
    tool_id: tool_ids.Rewriting = tool_ids.same


USUAL = Manners()


def manners(options: Mapping[str, Option]) -> Manners:
    """The manners that a target's options ask for."""
    return Manners(
        system_role=str(options.get("system_role", "system")),
        folds_system=options.get("system_in_messages", "keep") == "fold",
        fetches_images=bool(options.get("image_urls", True)),
        takes_files=bool(options.get("files", True)),
        reasoning_field=str(options.get("history_reasoning", "")),
        tool_id=tool_ids.ways(options.get("tool_ids"), "verbatim")[0],
    )


def write_messages(
    generation: pb.Generation, dialect: "pb.Dialect.ValueType", manners: Manners = USUAL
) -> list[dict[str, Any]]:
    """The `messages` of the request, for a caller of the given dialect."""
    writer = _Writer(dialect, manners)
    for message in generation.messages:
        writer.add(message)
    return writer.finish()


class _Writer:
    def __init__(self, dialect: "pb.Dialect.ValueType", manners: Manners) -> None:
        self._same_dialect = dialect == pb.DIALECT_OPENAI
        self._merges = dialect == pb.DIALECT_ANTHROPIC  # that dialect defines adjacent turns of one role as one turn
        self._manners = manners
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
        if not texts:
            return
        text = "\n\n".join(texts)
        if self._manners.folds_system and any(put["role"] != self._manners.system_role for put in self._out):
            self._fold_system(text)
        else:
            self._put(_named({"role": self._manners.system_role, "content": text}, message))

    def _fold_system(self, text: str) -> None:
        """Said by the user, at the place where it stood; never between a call and its results."""
        line = self._held if self._unanswered else self._out
        previous = line[-1] if line else None
        if previous is not None and previous["role"] in ("user", "tool"):
            previous["content"] = _joined(previous["content"], text)
        else:
            line.append({"role": "user", "content": text})

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
        call_id = self._manners.tool_id(result.tool_call_id)
        self._out.append({"role": "tool", "tool_call_id": call_id, "content": text})
        self._unanswered.discard(result.tool_call_id)
        if others:
            others.insert(0, {"type": "text", "text": f"[content of the result of tool call {call_id}]"})
        return others

    def _parts(self, block: pb.ContentBlock) -> list[Part]:
        """A user's block as parts; empty for what this dialect cannot say."""
        kind = block.WhichOneof("kind")
        if kind == "text":
            part: Part | None = {"type": "text", "text": block.text.text} if block.text.text else None
        elif kind == "image":
            part = _image(block.image, fetches=self._manners.fetches_images)
        elif kind == "document":
            part = _document(block.document, takes_files=self._manners.takes_files)
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
        if field := self._manners.reasoning_field:
            reasoning = "".join(block.thinking.text for block in message.content if block.HasField("thinking"))
            if reasoning:
                answer[field] = reasoning
        self._out.append(_named(answer, message))

    def _calls(self, block: pb.ContentBlock) -> list[Part]:
        """The entry of `tool_calls` that a block is, if it is one."""
        if block.HasField("opaque") and block.opaque.dialect == pb.DIALECT_OPENAI:
            return [msgspec.Raw(block.opaque.json)]
        if not block.HasField("tool_call"):
            return []
        call = block.tool_call
        self._unanswered.add(call.id)
        name = tool_names.of_call(call.name, LONGEST_NAME)
        written: dict[str, Any] = {
            "id": self._manners.tool_id(call.id),
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


def _image(image: pb.ImageBlock, *, fetches: bool) -> Part | None:
    source = image.WhichOneof("source")
    if source == "url":
        if not fetches:
            return {"type": "text", "text": _UNSEEN_IMAGE}
        url = image.url
    elif source == "base64_data":
        url = f"data:{image.media_type or _DEFAULT_IMAGE};base64,{image.base64_data}"
    else:  # a file's id means nothing elsewhere
        return None
    written: dict[str, Any] = {"url": url}
    if image.detail:
        written["detail"] = image.detail
    return {"type": "image_url", "image_url": written}


def _document(document: pb.DocumentBlock, *, takes_files: bool) -> Part:
    source = document.WhichOneof("source")
    if source == "text":
        lines = [line for line in (document.title, document.context, document.text) if line]
        return {"type": "text", "text": "\n".join(lines)}
    if source != "url" and not takes_files:
        return {"type": "text", "text": f"[document omitted: {document.title or 'a file'}]"}
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
