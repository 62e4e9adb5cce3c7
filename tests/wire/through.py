"""An upstream's bytes through the real readers and the real public writers into the official SDKs, without sockets.

Owns the plumbing between the two and what a legal public stream is; refuses to hold any translation of its own.
"""

import functools
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import anthropic
import httpx2
import openai
from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1.generation_pb2 import GenerationEvent

from edge.answer import Head
from edge.ask import Ask
from edge.shapes import ANTHROPIC, OPENAI, Shape
from services.routing_and_inference.answer import Answer
from services.routing_and_inference.attempts import Attempts
from services.routing_and_inference.fleet import Demand, Fleet
from services.routing_and_inference.ports import Upstream, UpstreamFailure, UpstreamRequest
from services.routing_and_inference.upstreams import dialects
from services.runtime.errors import GatewayError
from tests.builders import CannedHttp, CannedResponse, assert_legal, generation, run_now, upstream_request

SHAPES = {"anthropic": ANTHROPIC, "openai": OPENAI}
DIALECTS = {"anthropic": pb.DIALECT_ANTHROPIC, "openai": pb.DIALECT_OPENAI}
TYPED = (anthropic.APIError, openai.APIError)
ESTIMATE = 9  # tokens of the prompt, as admission estimates them
CALL_ID = "0192f0c1-2345-7000-8000-000000000001"


@dataclass
class Heard:
    """What a caller hears: the frames of a stream or the body of a reply, or the failure instead."""

    shape: Shape
    is_stream: bool
    body: bytes = b""
    status: int = 200
    error: GatewayError | None = None
    headers: dict[str, str] = field(default_factory=dict)


def ask_of(shape: str, made: pb.Generation) -> Ask:
    """A request as the public dialect would have read it."""
    return Ask("some-model", made, DIALECTS[shape], include_usage=True, shows_thinking=True)


def request_from(
    shape: str, upstream: str, *, stream: bool, made: pb.Generation | None = None, **more: Any
) -> UpstreamRequest:
    """The attempt that a caller of `shape` causes at an upstream that speaks `upstream`."""
    made = made or generation()
    made.stream = stream
    return upstream_request(made, upstream=upstream, dialect=DIALECTS[shape], **more)


def hear(
    pieces: Sequence[bytes], request: UpstreamRequest, shape: str, *, status: int = 200, is_whole: bool | None = None
) -> Heard:
    """The whole way of one attempt, as `generation` and `relay` go it; a failure is answered as the edge answers it.

    `is_whole`: how the upstream labels its answer; None: as it was asked to.
    """
    is_whole = not request.generation.stream if is_whole is None else is_whole
    kind = "application/json" if is_whole else "text/event-stream; charset=utf-8"
    http = CannedHttp(CannedResponse(list(pieces), {"content-type": kind}, status=status))
    return hear_from(dialects(http, instant=True).generation[request.target.dialect], request, shape)


def hear_from(upstream: Upstream, request: UpstreamRequest, shape: str) -> Heard:
    """The same with an upstream of the caller's choice."""
    return run_now(_relay(upstream.generate(request), request, SHAPES[shape], ask_of(shape, request.generation)))


class _Caller:
    """The public side of one call."""

    def __init__(self, request: UpstreamRequest, shape: Shape, ask: Ask) -> None:
        head = Head(CALL_ID, 1763770000, ask.model, ESTIMATE)
        self.heard = Heard(shape, request.generation.stream)
        self._stream, self._fold = shape.stream(head, ask), shape.fold(head, ask)
        self.seen: list[GenerationEvent] = []

    def take(self, events: Sequence[GenerationEvent]) -> None:
        self.seen.extend(events)
        if not self.heard.is_stream:
            self._fold.feed(events)
            return
        if not self.heard.body:
            for event in events:
                if event.HasField("message_started"):
                    self._stream.note_started(event.message_started)
        if frames := self._stream.feed(events):
            self.heard.body += frames if self.heard.body else self._stream.start() + frames

    def end(self) -> None:
        if not self.heard.is_stream:
            self.heard.body = self._fold.reply()


async def _relay(
    batches: AsyncIterator[Sequence[GenerationEvent]], request: UpstreamRequest, shape: Shape, ask: Ask
) -> Heard:
    answer = Answer(ESTIMATE, is_streamed=request.generation.stream)
    answer.begin(request.target.name)
    caller = _Caller(request, shape, ask)
    try:
        async for batch in batches:
            if events := answer.take(batch):
                caller.take(events)
        answer.require_end()
    except UpstreamFailure as failure:
        assert_legal(caller.seen, complete=False)
        _fail(caller.heard, failure, request, delivered=answer.has_delivered)
        return caller.heard
    last = GenerationEvent()
    remainder = answer.remainder()
    answer.finish(last.finished, None)
    caller.take([*remainder, last])
    assert_legal(caller.seen)
    caller.end()
    return caller.heard


def _fail(heard: Heard, failure: UpstreamFailure, request: UpstreamRequest, *, delivered: bool) -> None:
    heard.error = error_of(failure, request, delivered=delivered)
    if heard.body:
        heard.body += heard.shape.render_event(heard.error, CALL_ID)
        return
    reply = heard.shape.render(heard.error, CALL_ID)
    heard.status, heard.body, heard.is_stream = reply.status, reply.body, False
    heard.headers = {name.decode(): value.decode() for name, value in reply.headers}


def error_of(failure: UpstreamFailure, request: UpstreamRequest, *, delivered: bool = False) -> GatewayError:
    """What becomes of an upstream's failure when no other upstream is left."""
    fleet = Fleet([request.profile], now_s=lambda: 0.0, wall_us=lambda: 0, random=lambda: 0.5)
    attempts = Attempts(fleet, request.profile, Demand())
    assert run_now(attempts.next()) is not None
    with attempts:
        raise failure
    return attempts.error(delivered=delivered)


# ---- the official SDKs ----


class _Server:
    """Answers every request of both SDKs with what was heard last."""

    def __init__(self) -> None:
        self.heard = Heard(OPENAI, is_stream=False)
        transport = httpx2.MockTransport(self._respond)
        self.anthropic = anthropic.Anthropic(api_key="k", max_retries=0, http_client=httpx2.Client(transport=transport))
        self.openai = openai.OpenAI(api_key="k", max_retries=0, http_client=httpx2.Client(transport=transport))

    def _respond(self, _request: httpx2.Request) -> httpx2.Response:
        kind = "text/event-stream; charset=utf-8" if self.heard.is_stream else "application/json"
        headers = {**self.heard.headers, "content-type": kind}
        return httpx2.Response(self.heard.status, content=self.heard.body, headers=headers)


@functools.cache
def _server() -> _Server:
    return _Server()


def folded(heard: Heard) -> dict[str, Any]:
    """The answer as the SDK of the shape gives it to its user: a stream through the SDK's own accumulator.

    Raises the SDK's own typed error when a failure was heard.
    """
    server = _server()
    server.heard = heard
    if heard.shape is ANTHROPIC:
        if heard.is_stream:
            with server.anthropic.messages.stream(model="m", max_tokens=1, messages=[]) as stream:
                message: Any = stream.get_final_message()
        else:
            message = server.anthropic.messages.create(model="m", max_tokens=1, messages=[])
        return _plain_message(message.model_dump(exclude_none=True, warnings=False))
    if heard.is_stream:
        with server.openai.chat.completions.stream(model="m", messages=[]) as chunks:
            chunks.until_done()  # the final completion itself is refused for `length` and `content_filter`
            return _plain_completion(chunks.current_completion_snapshot.model_dump(exclude_none=True, warnings=False))
    completion = server.openai.chat.completions.create(model="m", messages=[])
    return _plain_completion(completion.model_dump(exclude_none=True, warnings=False))


def _plain_message(message: dict[str, Any]) -> dict[str, Any]:
    for block in message["content"]:
        block.pop("parsed_output", None)  # what the stream helper adds
    return message


def _plain_completion(completion: dict[str, Any]) -> dict[str, Any]:
    """What the helper adds or cannot carry is left out: parsed forms, annotations, the tier; "" and null are one."""
    message = completion["choices"][0]["message"]
    calls = [
        (call["id"], call["type"], call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls") or ()
    ]
    return {
        "head": [completion[name] for name in ("id", "created", "model", "usage")],
        "role": message["role"],
        "content": message.get("content") or "",
        "reasoning": message.get("reasoning_content") or "",
        "calls": calls,
        "end": completion["choices"][0]["finish_reason"],
    }


@dataclass(frozen=True)
class Said:
    """An answer in words that both public dialects share."""

    text: str = ""
    thinking: str = ""
    calls: tuple[tuple[str, str, str], ...] = ()  # id, name, compact JSON of the input
    end: str = ""
    input_tokens: int = 0
    output_tokens: int = 0


def said(heard: Heard) -> Said:
    """The same facts from either dialect."""
    answer = folded(heard)
    if heard.shape is ANTHROPIC:
        content, usage = answer["content"], answer["usage"]
        return Said(
            "".join(block["text"] for block in content if block["type"] == "text"),
            "".join(block["thinking"] for block in content if block["type"] == "thinking"),
            tuple((b["id"], b["name"], _compact(b["input"])) for b in content if b["type"] == "tool_use"),
            answer["stop_reason"],
            usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"],
            usage["output_tokens"],
        )
    usage = answer["head"][3]
    return Said(
        answer["content"],
        answer["reasoning"],
        tuple((call_id, name, _tidied(arguments)) for call_id, _, name, arguments in answer["calls"]),
        answer["end"],
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _tidied(arguments: str) -> str:
    """Arguments that were cut short stay as they are."""
    try:
        return _compact(json.loads(arguments))
    except ValueError:
        return arguments


# ---- the legal order of a public stream ----


def check_stream(heard: Heard) -> None:
    """The order of frames that both SDKs can rely on, up to the terminal event or the typed error."""
    if heard.shape is ANTHROPIC:
        _check_messages([_frame(frame) for frame in heard.body.split(b"\n\n")[:-1]])
    else:
        _check_chunks(heard.body.split(b"\n\n")[:-1])


def _frame(frame: bytes) -> tuple[str, dict[str, Any]]:
    name, _, data = frame.partition(b"\ndata: ")
    assert name.startswith(b"event: "), frame
    value = json.loads(data)
    assert value["type"] == name[7:].decode(), frame
    return value["type"], value


_DELTAS = {
    "text_delta": "text",
    "input_json_delta": "tool_use",
    "thinking_delta": "thinking",
    "signature_delta": "thinking",
}
_COMPLETE = {
    "text": {"text"},
    "thinking": {"thinking", "signature"},
    "redacted_thinking": {"data"},
    "tool_use": {"id", "name", "input"},
}


def _check_messages(frames: list[tuple[str, dict[str, Any]]]) -> None:
    kinds = [kind for kind, _ in frames if kind != "ping"]
    assert kinds[0] == "message_start", kinds
    assert kinds[-1] in ("message_stop", "error"), kinds
    for once in ("message_start", "message_delta", "message_stop", "error"):
        assert kinds.count(once) <= 1, kinds
    if kinds[-1] == "message_stop":
        assert kinds[-2] == "message_delta", kinds
    message = frames[0][1]["message"]
    assert (message["type"], message["role"]) == ("message", "assistant")
    assert message["usage"]["input_tokens"] > 0
    _check_blocks(frames[1:])


def _check_blocks(frames: list[tuple[str, dict[str, Any]]]) -> None:
    block: dict[str, Any] | None = None
    count = 0
    for kind, data in frames:
        if kind == "content_block_start":
            assert block is None, "two blocks are open"
            assert data["index"] == count
            block, count = data["content_block"], count + 1
            assert _COMPLETE.get(block["type"], set()) <= block.keys(), block
        elif kind.startswith("content_block_"):
            assert block is not None, f"{kind} outside a block"
            assert data["index"] == count - 1
            if kind == "content_block_stop":
                block = None
            else:
                assert _DELTAS[data["delta"]["type"]] == block["type"], (data, block)
        elif kind == "message_delta":
            assert block is None, "a block is still open"
            assert data["delta"]["stop_reason"], data
            assert data["usage"]["output_tokens"] >= 0


def _check_chunks(frames: list[bytes]) -> None:
    payloads = [frame.removeprefix(b"data: ") for frame in frames if not frame.startswith(b":")]
    chunks = [json.loads(payload) for payload in payloads if payload != b"[DONE]"]
    if "error" in chunks[-1]:
        assert chunks[-1]["error"].keys() == {"message", "type", "param", "code"}
        assert payloads[-1] != b"[DONE]"
        chunks = chunks[:-1]
        is_complete = False
    else:
        assert payloads[-1] == b"[DONE]"
        is_complete = True
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert [choice["delta"].get("role") for choice in choices] == ["assistant", *[None] * (len(choices) - 1)]
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    reasons = [choice["finish_reason"] for choice in choices]
    assert sum(reason is not None for reason in reasons) == is_complete
    if is_complete:
        assert reasons[-1]
        assert chunks[-1]["usage"]["total_tokens"] >= 0
    _check_calls([piece for choice in choices for piece in choice["delta"].get("tool_calls", ())])


def _check_calls(pieces: Iterable[dict[str, Any]]) -> None:
    """Id, type and name once per call; arguments only for the call that began last."""
    count = 0
    for piece in pieces:
        if "id" in piece:
            assert piece["index"] == count
            assert piece["id"]
            assert piece["type"] == "function"
            assert piece["function"]["name"]
            count += 1
        else:
            assert piece["index"] == count - 1
            assert piece["function"].keys() == {"arguments"}


def cuts_at_every_byte(data: bytes) -> Callable[[], Iterable[list[bytes]]]:
    """All ways to cut in two, and every byte by itself."""

    def pieces() -> Iterable[list[bytes]]:
        for at in range(1, len(data)):
            yield [data[:at], data[at:]]
        yield [data[at : at + 1] for at in range(len(data))]

    return pieces
