"""Stand-ins for what lies outside the gateway: a provider that answers as it was told and keeps a log.

Owns the provider's side of both upstream dialects, its faults included; knows nothing of the gateway.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call of a scripted answer."""

    name: str
    arguments: str = "{}"
    call_id: str = "call_1"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, said in whichever dialect and form the request asks for."""

    text: str = ""
    thinking: str = ""
    calls: Sequence[Call] = ()
    finish: str = ""  # in the words of the dialect; empty: what follows from the content
    input_tokens: int = 11
    output_tokens: int = 7
    piece: int = 4  # characters of a streamed delta
    reports_usage: bool = True


@dataclass(frozen=True, slots=True)
class Refuse:
    """A status with a body."""

    status: int
    body: bytes = b'{"error":{"message":"no","type":"server_error","code":null}}'
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bytes:
    """A 200 with exactly these pieces of a body, then `close`, `cut`, or `stall` until the client leaves."""

    pieces: Sequence[bytes]
    content_type: str = "text/event-stream"
    end: str = "close"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Break:
    """A reply that breaks after some streamed events: `cut` closes the connection, `stall` says nothing more."""

    reply: Reply
    after_events: int
    how: str = "cut"


@dataclass(frozen=True, slots=True)
class Hang:
    """No head at all until the client leaves."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The connection closes before the head."""


Script = Reply | Refuse | Bytes | Break | Hang | Drop


@dataclass(slots=True)
class Attempt:
    """One request that the provider served. Tokens are those that it reported."""

    path: str
    headers: Mapping[str, str]
    body: Json
    input_tokens: int = 0
    output_tokens: int = 0
    finished: bool = False
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """The client closed the connection before the answer was complete."""

    @property
    def request_id(self) -> str:
        return self.headers.get("x-request-id", "")


class ScriptedProvider:
    """Serves scripts in the order they were given; without one, `default`."""

    def __init__(self, default: Script | None = None) -> None:
        self.default = default or Reply(text="Hello there.")
        self.attempts: list[Attempt] = []
        self.connections = 0
        self.base_url = ""
        self._scripts: deque[Script] = deque()

    def script(self, *scripts: Script) -> None:
        """Appends scripts; each serves one request."""
        self._scripts.extend(scripts)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while attempt := await _read_request(reader):
                self.attempts.append(attempt)
                script = self._scripts.popleft() if self._scripts else self.default
                if not await _Answering(attempt, script, reader, writer).run():
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def scripted_provider(default: Script | None = None) -> AsyncIterator[ScriptedProvider]:
    """A provider on a port of its own, for the running loop."""
    provider = ScriptedProvider(default)
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(provider.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    provider.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield provider
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


async def _read_request(reader: asyncio.StreamReader) -> Attempt | None:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Attempt(first.split(" ")[1], headers, json.loads(body))


class _Answering:
    """One answer on one connection."""

    def __init__(
        self, attempt: Attempt, script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._attempt = attempt
        self._script = script
        self._reader = reader
        self._writer = writer

    async def run(self) -> bool:
        """True: the connection can serve another request."""
        script = self._script
        if isinstance(script, Drop):
            return False
        if isinstance(script, Hang):
            return await self._wait_until_left()
        if isinstance(script, Refuse):
            await self._send_whole(script.status, script.body, "application/json", script.headers)
            return True
        if isinstance(script, Bytes):
            return await self._send_pieces(script.pieces, script.content_type, script.end, script.headers)
        reply = script.reply if isinstance(script, Break) else script
        if reply.reports_usage:
            self._attempt.input_tokens, self._attempt.output_tokens = reply.input_tokens, reply.output_tokens
        anthropic = self._attempt.path.endswith("/messages")
        if not self._attempt.body.get("stream"):
            body = anthropic_message(reply) if anthropic else openai_message(reply)
            await self._send_whole(200, json.dumps(body).encode(), "application/json", {})
            self._attempt.finished = True
            return True
        frames = anthropic_frames(reply) if anthropic else openai_frames(reply)
        if isinstance(script, Break):
            return await self._send_pieces(frames[: script.after_events], "text/event-stream", script.how, {})
        return await self._send_pieces(frames, "text/event-stream", "close", {})

    async def _send_whole(self, status: int, body: bytes, content_type: str, headers: Mapping[str, str]) -> None:
        all_headers = {"content-type": content_type, "content-length": str(len(body)), **headers}
        self._writer.write(_head(status, all_headers) + body)
        await self._writer.drain()

    async def _send_pieces(
        self, pieces: Sequence[bytes], content_type: str, end: str, headers: Mapping[str, str]
    ) -> bool:
        self._writer.write(_head(200, {"content-type": content_type, "transfer-encoding": "chunked", **headers}))
        for piece in pieces:
            self._writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await self._writer.drain()
        if end == "cut":
            return False
        if end == "stall":
            return await self._wait_until_left()
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()
        self._attempt.finished = True
        return True

    async def _wait_until_left(self) -> bool:
        await self._reader.read(1)
        self._attempt.left.set()
        return False


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} Scripted\r\n{lines}\r\n".encode("latin-1")


def _split(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def openai_frame(payload: Json) -> bytes:
    """One frame of a Chat Completions stream."""
    return b"data: " + json.dumps(payload, ensure_ascii=False).encode() + b"\n\n"


def openai_chunk(delta: Json, finish: str | None = None, **more: Any) -> bytes:
    """A frame with one choice."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return openai_frame({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice], **more})


def openai_usage(reply: Reply) -> Json:
    total = reply.input_tokens + reply.output_tokens
    return {"prompt_tokens": reply.input_tokens, "completion_tokens": reply.output_tokens, "total_tokens": total}


def openai_message(reply: Reply) -> Json:
    """A reply as one Chat Completions body."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text or None}
    if reply.thinking:
        message["reasoning_content"] = reply.thinking
    if reply.calls:
        message["tool_calls"] = [
            {"id": c.call_id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in reply.calls
        ]
    finish = reply.finish or ("tool_calls" if reply.calls else "stop")
    body: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    }
    return {**body, "usage": openai_usage(reply)} if reply.reports_usage else body


def openai_frames(reply: Reply) -> list[bytes]:
    """A reply as the frames of a Chat Completions stream."""
    frames = [openai_chunk({"role": "assistant", "content": ""})]
    frames += [openai_chunk({"reasoning_content": piece}) for piece in _split(reply.thinking, reply.piece)]
    frames += [openai_chunk({"content": piece}) for piece in _split(reply.text, reply.piece)]
    for index, call in enumerate(reply.calls):
        opening = {"index": index, "id": call.call_id, "type": "function"}
        frames.append(openai_chunk({"tool_calls": [{**opening, "function": {"name": call.name, "arguments": ""}}]}))
        frames += [
            openai_chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
            for piece in _split(call.arguments, reply.piece)
        ]
    frames.append(openai_chunk({}, reply.finish or ("tool_calls" if reply.calls else "stop")))
    if reply.reports_usage:
        frames.append(openai_frame({"id": "chatcmpl-1", "choices": [], "usage": openai_usage(reply)}))
    return [*frames, b"data: [DONE]\n\n"]


def anthropic_frame(payload: Json) -> bytes:
    """One frame of a Messages stream."""
    data = json.dumps(payload, ensure_ascii=False)
    return f"event: {payload['type']}\ndata: {data}\n\n".encode()


def anthropic_message(reply: Reply) -> Json:
    """A reply as one Messages body."""
    content: list[Json] = []
    if reply.thinking:
        content.append({"type": "thinking", "thinking": reply.thinking, "signature": "proof"})
    if reply.text:
        content.append({"type": "text", "text": reply.text})
    content += [
        {"type": "tool_use", "id": c.call_id, "name": c.name, "input": json.loads(c.arguments)} for c in reply.calls
    ]
    body: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": content,
        "stop_reason": reply.finish or ("tool_use" if reply.calls else "end_turn"),
        "stop_sequence": None,
    }
    usage = {"input_tokens": reply.input_tokens, "output_tokens": reply.output_tokens}
    return {**body, "usage": usage} if reply.reports_usage else body


def anthropic_frames(reply: Reply) -> list[bytes]:
    """A reply as the frames of a Messages stream."""
    message = anthropic_message(reply)
    opening = {**message, "content": [], "stop_reason": None}
    if reply.reports_usage:
        opening["usage"] = {"input_tokens": reply.input_tokens, "output_tokens": 1}
    frames = [anthropic_frame({"type": "message_start", "message": opening}), anthropic_frame({"type": "ping"})]
    for index, block in enumerate(message["content"]):
        frames += _block_frames(index, block, reply)
    delta = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    ending: dict[str, Any] = {"type": "message_delta", "delta": delta}
    if reply.reports_usage:
        ending["usage"] = {"output_tokens": reply.output_tokens}
    return [*frames, anthropic_frame(ending), anthropic_frame({"type": "message_stop"})]


def _block_frames(index: int, block: Json, reply: Reply) -> list[bytes]:
    if block["type"] == "thinking":
        start: Json = {"type": "thinking", "thinking": "", "signature": ""}
        deltas: list[Json] = [{"type": "thinking_delta", "thinking": p} for p in _split(reply.thinking, reply.piece)]
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
    elif block["type"] == "text":
        start = {"type": "text", "text": ""}
        deltas = [{"type": "text_delta", "text": piece} for piece in _split(reply.text, reply.piece)]
    else:
        start = {**block, "input": {}}
        arguments = next(call.arguments for call in reply.calls if call.call_id == block["id"])
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in _split(arguments, reply.piece)]
    frames = [anthropic_frame({"type": "content_block_start", "index": index, "content_block": start})]
    frames += [anthropic_frame({"type": "content_block_delta", "index": index, "delta": delta}) for delta in deltas]
    return [*frames, anthropic_frame({"type": "content_block_stop", "index": index})]
