"""A caller that hides nothing: raw HTTP and SSE over asyncio, many at once, every answer checked by one rule book.

Owns requests, reading to the last byte, and what must hold of every answer; refuses to retry and to know SDKs.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.rule_book import LIMIT_HEADERS as LIMIT_HEADERS
from tests.rule_book import frames_of, header_problems, stream_problems

HANGS_AFTER_S = 45.0


@dataclass(frozen=True, slots=True)
class Event:
    """One SSE event: its name (empty in the OpenAI dialect) and its data."""

    name: str
    data: str


@dataclass(slots=True)
class Answer:
    """All that came back. `status` 0: no answer at all. `cut`: the connection ended before the answer did."""

    path: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: bool = False
    error_text: str = ""
    sent_at_s: float = 0.0  # by the event loop's clock
    head_after_s: float = 0.0
    seconds: float = 0.0

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Event]:
        """The whole events of a stream; a piece without its blank line is none."""
        return [Event(name, data) for name, data in frames_of(self.body)]

    @property
    def is_terminated(self) -> bool:
        """The answer says that it is complete."""
        if not self.is_stream:
            return self.status == 200 and not self.cut
        events = self.events
        return bool(events) and (events[-1].name == "message_stop" or events[-1].data == "[DONE]")

    @property
    def error(self) -> dict[str, Any] | None:
        """The error object of a failed answer: of the body, or of a stream's last event."""
        if self.status == 0:
            return None
        if not self.is_stream:
            return None if self.status == 200 else _error_of(self.body.decode(errors="replace"))
        events = self.events
        return _error_of(events[-1].data) if events and not self.is_terminated else None

    @property
    def ok(self) -> bool:
        """A complete answer with nothing to object to."""
        return self.status == 200 and self.is_terminated

    @property
    def text(self) -> str:
        """The text of the answer, whichever dialect and form it came in."""
        if self.is_stream:
            return "".join(_delta_text(event) for event in self.events)
        body = self.json
        if "choices" in body:
            return str(body["choices"][0]["message"]["content"] or "")
        return "".join(block.get("text", "") for block in body["content"])

    @property
    def usage(self) -> tuple[int, int]:
        """Input and output tokens as the caller was told."""
        if not self.is_stream:
            return _usage_of(self.json["usage"])
        found: dict[str, Any] = {}
        for event in self.events:
            if event.data != "[DONE]":
                data = json.loads(event.data)
                found |= data.get("usage") or data.get("message", {}).get("usage") or {}
        return _usage_of(found)

    @property
    def call_id(self) -> str:
        """Our id of the call."""
        return self.headers.get("request-id", "")


def problems(answer: Answer) -> list[str]:
    """What must hold of every answer, and does not. The one rule book of all suites."""
    if answer.status == 0:
        return []  # no answer came: whether that was allowed is the test's business
    found = header_problems(answer.path, answer.status, answer.headers)
    if answer.is_stream:
        found += _stream_problems(answer)
    elif answer.status != 200 and not answer.cut:
        found += _envelope_problems(answer.path, answer.error)
    return found


def _stream_problems(answer: Answer) -> list[str]:
    if answer.cut:
        return []  # the broken connection tells the caller; whether it was allowed is the test's business
    found = stream_problems(answer.body)
    if not found and answer.error is not None:
        found = _envelope_problems(answer.path, answer.error)
    return found


def _envelope_problems(path: str, error: dict[str, Any] | None) -> list[str]:
    if error is None:
        return ["a failure that is not in its dialect's envelope"]
    expected = {"message", "type", "param", "code"} if "chat" in path else {"message", "type"}
    missing = expected - error.keys()
    return [f"an error without {', '.join(sorted(missing))}: {error}"] if missing else []


def _error_of(text: str) -> dict[str, Any] | None:
    try:
        error = json.loads(text).get("error")
    except (ValueError, AttributeError):
        return None
    return error if isinstance(error, dict) else None


def _delta_text(event: Event) -> str:
    if event.data == "[DONE]":
        return ""
    data = json.loads(event.data)
    if data.get("type") == "content_block_delta":
        return str(data["delta"].get("text", ""))
    return "".join(choice["delta"].get("content") or "" for choice in data.get("choices", ()))


def _usage_of(usage: dict[str, Any]) -> tuple[int, int]:
    read = usage.get("cache_read_input_tokens") or 0
    given = usage["prompt_tokens"] if "prompt_tokens" in usage else usage["input_tokens"] + read
    made = usage["completion_tokens"] if "completion_tokens" in usage else usage["output_tokens"]
    return int(given), int(made)


@dataclass(frozen=True, slots=True)
class Request:
    """One request, ready to send. `leave_after` bytes of body were read: close the connection."""

    path: str
    body: bytes = b""
    leave_after: int | None = None


def messages(text: str, *, stream: bool = True, max_tokens: int = 64, **fields: Any) -> Request:
    """A request in the Anthropic dialect."""
    body = {"model": "dragon", "max_tokens": max_tokens, "messages": [{"role": "user", "content": text}]}
    return Request("/v1/messages", json.dumps({**body, "stream": stream, **fields}).encode())


def chat(text: str, *, stream: bool = True, max_tokens: int = 64, **fields: Any) -> Request:
    """A request in the OpenAI dialect; a stream is asked to report its usage."""
    body = {"model": "dragon", "max_tokens": max_tokens, "messages": [{"role": "user", "content": text}]}
    options = {"stream_options": {"include_usage": True}} if stream else {}
    return Request("/v1/chat/completions", json.dumps({**body, "stream": stream, **options, **fields}).encode())


class Caller:
    """Sends requests with one API key, each on a connection of its own.

    Every answer goes through `problems`. A cut answer is a problem as well unless `may_be_cut` (its server is killed).
    """

    def __init__(self, base_url: str, api_key: str, *, may_be_cut: bool = False) -> None:
        url = urlsplit(base_url)
        self._host, self._port = str(url.hostname), int(url.port or 80)
        self._api_key = api_key
        self._may_be_cut = may_be_cut

    async def send(self, request: Request) -> Answer:
        """Reads one answer to its end. Raises AssertionError if it breaks a rule."""
        answer = Answer(request.path)
        started = answer.sent_at_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(HANGS_AFTER_S) as patience:
                await self._exchange(request, answer, started)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            answer.cut = True
            answer.error_text = repr(error)
        answer.seconds = asyncio.get_running_loop().time() - started
        assert not patience.expired(), f"{request.path}: hangs, {answer.status} …{answer.body[-200:]!r}"
        found = [] if request.leave_after is not None else problems(answer)
        if answer.cut and not self._may_be_cut:
            found.append(f"cut: {answer.error_text} after {answer.seconds:.2f} s, status {answer.status}")
        assert not found, f"{request.path}: {found}"
        return answer

    async def get(self, path: str) -> Answer:
        """A GET, checked like every other answer."""
        return await self.send(Request(path))

    async def _exchange(self, request: Request, answer: Answer, started: float) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=1 << 20)
        try:
            writer.write(self._head(request) + request.body)
            head = await reader.readuntil(b"\r\n\r\n")
            answer.head_after_s = asyncio.get_running_loop().time() - started
            lines = head.decode("latin-1").split("\r\n")
            answer.headers = {
                name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
            }
            answer.status = int(lines[0].split(" ")[1])
            await self._read_body(reader, answer, request.leave_after)
        finally:
            writer.close()

    def _head(self, request: Request) -> bytes:
        method = "POST" if request.body else "GET"
        lines = [f"{method} {request.path} HTTP/1.1", f"Host: {self._host}", "Connection: close"]
        lines += [f"Authorization: Bearer {self._api_key}"] if self._api_key else []
        lines += ["Content-Type: application/json", f"Content-Length: {len(request.body)}", "", ""]
        return "\r\n".join(lines).encode()

    async def _read_body(self, reader: asyncio.StreamReader, answer: Answer, leave_after: int | None) -> None:
        if answer.headers.get("transfer-encoding") != "chunked":
            answer.body = await reader.readexactly(int(answer.headers.get("content-length", "0")))
            return
        pieces, read = [], 0
        try:
            while size := int(await reader.readuntil(b"\r\n"), 16):
                pieces.append((await reader.readexactly(size + 2))[:-2])
                read += size
                if leave_after is not None and read >= leave_after:
                    return
            await reader.readexactly(2)
        finally:
            answer.body = b"".join(pieces)


async def at_once(caller: Caller, requests: Iterable[Request]) -> list[Answer]:
    """Sends all requests at the same time and returns the answers in their order."""
    return list(await asyncio.gather(*(caller.send(request) for request in requests)))


@dataclass(slots=True)
class Load:
    """A closed loop: `width` callers that each send their next request when the last one is answered."""

    caller: Caller
    requests: Sequence[Request]
    width: int
    answers: list[Answer] = field(default_factory=list)
    pause_after_failure_s: float = 0.05
    """A caller that was refused comes back a little later, as SDKs do."""

    async def until(self, over: asyncio.Event) -> list[Answer]:
        """Runs until the event is set; then lets every running request end."""
        async with asyncio.TaskGroup() as group:
            for number in range(self.width):
                group.create_task(self._loop(number, over))
        return self.answers

    async def _loop(self, number: int, over: asyncio.Event) -> None:
        turn = number
        while not over.is_set():
            answer = await self.caller.send(self.requests[turn % len(self.requests)])
            self.answers.append(answer)
            turn += 1
            if not answer.ok:
                await asyncio.sleep(self.pause_after_failure_s)


async def eventually(condition: Callable[[], Any], *, within_s: float = 10.0, why: str = "") -> Any:
    """Polls a condition until it gives something true, and returns that. Raises AssertionError at the deadline."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert loop.time() < deadline, f"not within {within_s:g} s: {why or condition}"
        await asyncio.sleep(0.02)
