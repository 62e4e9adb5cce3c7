"""A provider with two machines, a primary that fails as the model name says and a spare, in both upstream dialects.

Owns the faults and a log of who was asked; knows nothing of the gateway. The model names the fault and the machine, as
in `cut/primary`; whoever sends the same prompt gets the same sixty tokens, and a prefill is written on.
"""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

TOKENS = [f"tok{number} " for number in range(59)] + ["tok59."]
TEXT = "".join(TOKENS)
INPUT_TOKENS, OUTPUT_TOKENS = 11, 60
ARGUMENTS = '{"city": "Paris", "unit": "celsius"}'
REFUSAL = "I cannot help with that."

BEFORE_CONTENT = (
    "429 with Retry-After",
    "429",
    "one 500",
    "503",
    "reset before the head",
    "silence",
    "slow first token",
    "context overflow",
)
AFTER_CONTENT = ("cut", "stall", "malformed chunk")
FAULTS = (*BEFORE_CONTENT, *AFTER_CONTENT, "no last line", "content filter", "spare refuses prefill")
_STATUS = {"429 with Retry-After": 429, "429": 429, "503": 503}


@dataclass(slots=True)
class Asked:
    """One request that reached a machine."""

    call_id: str
    fault: str
    machine: str
    is_prefilled: bool


class _Break(Exception):  # noqa: N818 - how the provider ends a connection on purpose
    """The connection is torn down here."""


@dataclass(slots=True)
class _Reply:
    """What one request gets, whatever its dialect."""

    fault: str  # empty: none
    body: dict[str, Any]
    left: str  # what the caller has of the answer already
    calls_tool: bool = False
    pieces: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        rest = TEXT.removeprefix(self.left)
        if self.fault == "content filter":
            rest = ""
        if self.left and rest != TEXT:
            self.pieces = [rest[at : at + 6] for at in range(0, len(rest), 6)]
        else:
            self.pieces = list(TOKENS) if rest else []


class FaultyProvider:
    """Runs on a thread of its own; use as a context manager."""

    def __init__(self) -> None:
        self.log: list[Asked] = []
        self._asked: Counter[tuple[str, str]] = Counter()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> "FaultyProvider":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        """Without the dialect's path."""
        return f"http://127.0.0.1:{self.port}"

    def asked(self, call_id: str) -> list[str]:
        """The machines that a call has reached, in order."""
        return [asked.machine for asked in self.log if asked.call_id == call_id]

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._converse, "127.0.0.1", 0, backlog=512)
        self.port = int(server.sockets[0].getsockname()[1])
        self._ready.set()
        await self._stop.wait()
        server.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode("latin-1").lower().split("\r\n")
                headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                async for data in self._answer(lines[0], headers["x-request-id"], body):
                    writer.write(data)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except _Break:
            writer.transport.abort()
        finally:
            writer.close()

    def _reply(self, request_id: str, body: dict[str, Any]) -> _Reply:
        fault, machine = body["model"].rsplit("/", 1)
        call_id = request_id.rpartition(".")[0]
        last = body["messages"][-1]
        left = _text(last["content"]) if last["role"] == "assistant" else ""
        self.log.append(Asked(call_id, fault, machine, bool(left)))
        self._asked[call_id, machine] += 1
        is_over = fault == "one 500" and self._asked[call_id, machine] > 1
        if fault == "spare refuses prefill":
            fault = "cut" if machine == "primary" and not left else "refuses prefill" if left else ""
        elif (machine == "spare" and fault != "content filter") or is_over:
            fault = ""
        return _Reply(fault, body, left, calls_tool="use the tool" in json.dumps(body["messages"]))

    async def _answer(self, line: str, request_id: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
        reply = self._reply(request_id, body)
        dialect: Any = _Anthropic(reply) if "/messages" in line else _OpenAi(reply)
        if reply.fault in {"silence", "reset before the head", "one 500"} or reply.fault in _STATUS:
            yield await _refusal(reply.fault, dialect)
        elif reply.fault in {"context overflow", "refuses prefill"}:
            yield _whole(400, dialect.error(reply.fault))
        elif not body.get("stream"):
            yield await _in_one_piece(reply, dialect)
        else:
            yield b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            if reply.fault == "slow first token":
                yield _framed(b": wait\n\n")
                await asyncio.sleep(30)
            async for event in _streamed(reply, dialect):
                yield _framed(event)
            yield b"0\r\n\r\n"


async def _refusal(fault: str, dialect: Any) -> bytes:
    if fault == "silence":
        await asyncio.sleep(30)
    if fault not in {"one 500", *_STATUS}:
        raise _Break
    status = _STATUS.get(fault, 500)
    after = b"retry-after: 1\r\n" if fault == "429 with Retry-After" else b""
    return _whole(status, dialect.error(fault), after)


async def _in_one_piece(reply: _Reply, dialect: Any) -> bytes:
    whole = _whole(200, dialect.message())
    if reply.fault == "slow first token":
        await asyncio.sleep(30)
    if reply.fault == "malformed chunk":
        return _whole(200, b'{"choices": [{"message')
    return whole


async def _streamed(reply: _Reply, dialect: Any) -> AsyncIterator[bytes]:
    stops_at = {"cut": 40, "stall": 20, "malformed chunk": 30}.get(reply.fault)
    events = dialect.events()
    for number, event in enumerate(events):
        if reply.calls_tool and stops_at is not None:
            stops_at = min(stops_at, len(events) - 4)  # inside the arguments
        if number == stops_at:
            if reply.fault == "stall":
                await asyncio.sleep(30)
            if reply.fault == "malformed chunk":
                yield b'data: {"choices": [{"del\n\n'
            raise _Break
        yield event


def _whole(status: int, body: bytes, headers: bytes = b"") -> bytes:
    head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n"
    return head % (status, headers, len(body)) + body


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(block.get("text", "") for block in content)


_ERRORS = {
    "context overflow": "This model's maximum context length is 8 tokens. Your messages resulted in 11 tokens.",
    "refuses prefill": "This model does not support assistant message prefill.",
}


class _OpenAi:
    def __init__(self, reply: _Reply) -> None:
        self._reply = reply

    def error(self, fault: str) -> bytes:
        code = "context_length_exceeded" if fault == "context overflow" else None
        message = _ERRORS.get(fault, "scripted")
        return json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": code}}).encode()

    @property
    def _finish(self) -> str:
        if self._reply.fault == "content filter":
            return "content_filter"
        return "tool_calls" if self._reply.calls_tool else "stop"

    def message(self) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._reply.pieces)}
        if self._reply.calls_tool:
            function = {"name": "weather", "arguments": ARGUMENTS}
            message = {"role": "assistant", "content": None}
            message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
        choice = {"index": 0, "message": message, "finish_reason": self._finish}
        return json.dumps({"id": "c", "object": "chat.completion", "choices": [choice], "usage": _usage()}).encode()

    def events(self) -> list[bytes]:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        if self._reply.calls_tool:
            function = {"name": "weather", "arguments": ""}
            deltas.append({"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]})
            for at in range(0, len(ARGUMENTS), 3):
                function = {"arguments": ARGUMENTS[at : at + 3]}
                deltas.append({"tool_calls": [{"index": 0, "function": function}]})
        else:
            deltas += [{"content": piece} for piece in self._reply.pieces]
        chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": self._finish}]})
        chunks.append({"choices": [], "usage": _usage()})
        events = [b"data: " + json.dumps({"id": "c", "object": "chat.completion.chunk", **c}).encode() for c in chunks]
        return [
            event + b"\n\n" for event in (events if self._reply.fault == "no last line" else [*events, b"data: [DONE]"])
        ]


def _usage() -> dict[str, int]:
    return {
        "prompt_tokens": INPUT_TOKENS,
        "completion_tokens": OUTPUT_TOKENS,
        "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
    }


class _Anthropic:
    def __init__(self, reply: _Reply) -> None:
        self._reply = reply

    def error(self, fault: str) -> bytes:
        kind = {"429": "rate_limit_error", "429 with Retry-After": "rate_limit_error"}.get(fault, "api_error")
        message = _ERRORS.get(fault, "scripted")
        if fault == "context overflow":
            message = "prompt is too long: 11 tokens > 8 maximum"
        kind = "invalid_request_error" if fault in _ERRORS else kind
        return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()

    @property
    def _stop(self) -> str:
        if self._reply.fault == "content filter":
            return "refusal"
        return "tool_use" if self._reply.calls_tool else "end_turn"

    def message(self) -> bytes:
        block: dict[str, Any] = {"type": "text", "text": "".join(self._reply.pieces)}
        if self._reply.calls_tool:
            block = {"type": "tool_use", "id": "call_1", "name": "weather", "input": json.loads(ARGUMENTS)}
        usage = {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS}
        content = [block] if self._reply.pieces or self._reply.calls_tool else []
        body = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": content}
        return json.dumps({**body, "stop_reason": self._stop, "stop_sequence": None, "usage": usage}).encode()

    def events(self) -> list[bytes]:
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": []}
        usage = {"input_tokens": INPUT_TOKENS, "output_tokens": 1}
        start = {**message, "stop_reason": None, "stop_sequence": None, "usage": usage}
        events: list[dict[str, Any]] = [{"type": "message_start", "message": start}]
        if self._reply.calls_tool:
            block: dict[str, Any] = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {}}
            parts = [ARGUMENTS[at : at + 3] for at in range(0, len(ARGUMENTS), 3)]
            deltas = [{"type": "input_json_delta", "partial_json": part} for part in parts]
        else:
            block = {"type": "text", "text": ""}
            deltas = [{"type": "text_delta", "text": piece} for piece in self._reply.pieces]
        if deltas:
            events.append({"type": "content_block_start", "index": 0, "content_block": block})
            events += [{"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas]
            events.append({"type": "content_block_stop", "index": 0})
        end = {"stop_reason": self._stop, "stop_sequence": None}
        events.append({"type": "message_delta", "delta": end, "usage": {"output_tokens": OUTPUT_TOKENS}})
        if self._reply.fault != "no last line":
            events.append({"type": "message_stop"})
        return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]
