"""What must hold of every answer of the gateway, whichever suite reads it: its headers, its failures, its streams.

Owns the rules and the two readers that apply them on the way (an SDK's transport, a proxy); refuses to know any test.
"""

import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx2

LIMIT_HEADERS = tuple(
    f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")
)
RETRY_AFTER_MAX_S = 60
# Paths that are no part of the API, and carry no limits.
FREE = ("/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json")

_GO_DURATION = re.compile(r"^(\d+ms|(\d+h)?(\d+m)?\d+(\.\d{1,3})?s)$")
_DELTAS = {
    "text_delta": ("text",),
    "citations_delta": ("text",),
    "input_json_delta": ("tool_use", "server_tool_use"),
    "thinking_delta": ("thinking",),
    "signature_delta": ("thinking",),
    "compaction_delta": ("compaction",),
}
_COMPLETE = {
    "text": {"text"},
    "thinking": {"thinking", "signature"},
    "redacted_thinking": {"data"},
    "tool_use": {"id", "name", "input"},
}
Frame = tuple[str, str]  # the event's name, empty in the OpenAI dialect, and its data


# ---- headers ----


def header_problems(path: str, status: int, headers: Mapping[str, str]) -> list[str]:
    """The six on every 200 and 429, an id on everything, a wait of a minute at most wherever one is told."""
    if path.partition("?")[0] in FREE:
        return []
    found = [f"{status} without {name}" for name in ("request-id", "x-request-id") if not headers.get(name)]
    if path.startswith("/proxy/"):
        return found
    if status in (200, 429):
        for name in LIMIT_HEADERS:
            value = headers.get(name, "")
            if not (_GO_DURATION.match(value) if "-reset-" in name else value.isdecimal()):
                found.append(f"{status} with {name}: {value!r}")
    wait = headers.get("retry-after")
    if (wait is not None or status == 429) and not 1 <= int(wait or 0) <= RETRY_AFTER_MAX_S:
        found.append(f"{status} with retry-after: {wait!r}")
    return found


# ---- streams ----


def frames_of(body: bytes) -> list[Frame]:
    """The whole frames of a stream but its comments; a piece without its blank line is none."""
    *whole, _rest = body.decode(errors="replace").split("\n\n")
    return [_frame(frame) for frame in whole if not frame.startswith(":")]


def _frame(text: str) -> Frame:
    name, data = "", []
    for line in text.split("\n"):
        key, _, value = line.partition(":")
        if key == "event":
            name = value.strip()
        elif key == "data":
            data.append(value.removeprefix(" "))
    return name, "\n".join(data)


def has_ended(frames: list[Frame]) -> bool:
    """The stream has said that it is over, or that it failed."""
    if not frames:
        return False
    name, data = frames[-1]
    return name in ("message_stop", "error") or data == "[DONE]" or (not name and "error" in json.loads(data))


def stream_problems(body: bytes) -> list[str]:
    """What is wrong with a stream that was read to its end, in either dialect."""
    if not body.endswith(b"\n\n"):
        return [f"a stream that ends in the middle of an event: …{body[-100:]!r}"]
    frames = frames_of(body)
    if not has_ended(frames):
        return [f"a stream that ended silently: …{body[-200:]!r}"]
    try:
        body.decode()
        if frames[0][0]:
            _Messages().read(frames)
        else:
            _Chunks().read(frames)
    except (AssertionError, LookupError, TypeError, ValueError) as error:
        return [f"an illegal stream: {error!r} in …{body[-300:]!r}"]
    return []


class _Messages:
    """The grammar of an Anthropic stream: one block at a time, numbered from 0, everything once."""

    def __init__(self) -> None:
        self._block: dict[str, Any] | None = None
        self._blocks = 0
        self._seen: list[str] = []

    def read(self, frames: list[Frame]) -> None:
        for name, text in frames:
            data = json.loads(text)
            assert data["type"] == name, f"{name} says that it is {data['type']}"
            if name != "ping":
                assert not self._seen or self._seen[-1] not in ("message_stop", "error"), f"{name} after the end"
                self._take(name, data)
                self._seen.append(name)

    def _take(self, name: str, data: dict[str, Any]) -> None:
        if name == "error":
            assert data["error"]["type"], data
            assert data["error"]["message"], data
        elif name == "message_start":
            assert not self._seen, "a second message_start"
            _check_start(data["message"])
        elif name == "content_block_start":
            assert self._block is None, "two blocks are open"
            assert data["index"] == self._blocks, f"block {data['index']} after {self._blocks} blocks"
            self._block, self._blocks = data["content_block"], self._blocks + 1
            assert _COMPLETE.get(self._block["type"], set()) <= self._block.keys(), self._block
        elif name in ("content_block_delta", "content_block_stop"):
            self._inside(name, data)
        elif name == "message_delta":
            assert self._block is None, "a block is still open"
            assert "message_delta" not in self._seen, "a second message_delta"
            assert data["delta"]["stop_reason"], data
            assert isinstance(data["usage"]["output_tokens"], int), data
        else:
            assert name == "message_stop", f"an event that no reader knows: {name}"
            assert self._seen[-1] == "message_delta", "message_stop without a message_delta before it"

    def _inside(self, name: str, data: dict[str, Any]) -> None:
        assert self._block is not None, f"{name} outside a block"
        assert data["index"] == self._blocks - 1, f"{name} of another block"
        if name == "content_block_stop":
            self._block = None
        else:
            assert self._block["type"] in _DELTAS[data["delta"]["type"]], (data, self._block)


def _check_start(message: dict[str, Any]) -> None:
    assert (message["type"], message["role"], message["content"], message["stop_reason"]) == (
        "message",
        "assistant",
        [],
        None,
    ), message
    assert isinstance(message["usage"]["input_tokens"], int), message
    assert isinstance(message["usage"]["output_tokens"], int), message


class _Chunks:
    """The grammar of an OpenAI stream: role first, calls named once and in order, one finish reason, `[DONE]`."""

    def __init__(self) -> None:
        self._calls = 0
        self._is_finished = False
        self._envelope: tuple[Any, ...] = ()

    def read(self, frames: list[Frame]) -> None:
        for at, (name, text) in enumerate(frames):
            assert not name, f"a named event: {name}"
            is_last = at == len(frames) - 1
            if text == "[DONE]":
                assert is_last, "[DONE] before the end"
                assert self._is_finished, "[DONE] without a finish reason"
                continue
            data = json.loads(text)
            if "error" in data:
                assert is_last, "something after an error"
                assert {"message", "type", "param", "code"} <= data["error"].keys(), data
                continue
            self._take(data)

    def _take(self, chunk: dict[str, Any]) -> None:
        envelope = (chunk["id"], chunk["object"], chunk["created"], chunk["model"])
        assert self._envelope in ((), envelope), "another envelope in the same stream"
        for choice in chunk["choices"]:
            assert not self._is_finished, "content after the finish reason"
            role = choice["delta"].get("role")
            assert role == (None if self._envelope else "assistant"), "the role stands first, and once"
            for call in choice["delta"].get("tool_calls") or ():
                self._call(call)
            self._is_finished = choice["finish_reason"] is not None
        self._envelope = envelope

    def _call(self, call: dict[str, Any]) -> None:
        if "id" in call:
            assert call["index"] == self._calls, f"call {call['index']} after {self._calls} calls"
            assert call["type"] in ("function", "custom"), call
            self._calls += 1
        assert call["index"] == self._calls - 1, "pieces of a call that is not the last"


# ---- readers ----


class CheckedTransport(httpx2.AsyncBaseTransport):
    """Passes requests of an SDK or a plain client on; holds every answer to the rules, streams to their last byte."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        found = header_problems(request.url.path, response.status_code, response.headers)
        assert not found, f"{request.method} {request.url.path}: {found}"
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _CheckedStream(response.stream)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _CheckedStream(httpx2.AsyncByteStream):
    """A reader that leaves early has seen no end, so only what came to its end is held to the rules of ends."""

    def __init__(self, inner: httpx2.AsyncByteStream) -> None:
        self._inner = inner
        self._pieces: list[bytes] = []
        self._is_checked = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._inner:
            self._pieces.append(piece)
            yield piece
        self._check()

    async def aclose(self) -> None:
        await self._inner.aclose()
        if has_ended(frames_of(b"".join(self._pieces))):
            self._check()

    def _check(self) -> None:
        if not self._is_checked:
            self._is_checked = True
            found = stream_problems(b"".join(self._pieces))
            assert not found, found
