"""Builders and checkers that several suites share: neutral requests, upstreams without sockets, legal event sequences.

Owns what a legal answer is; refuses to know the dialects of callers.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1.generation_pb2 import GenerationEvent

from services.routing_and_inference.catalog import Capabilities, Kind, Option, Price, Profile, UpstreamTarget
from services.routing_and_inference.ports import Upstream, UpstreamFailure, UpstreamRequest
from services.routing_and_inference.upstreams import dialects
from services.routing_and_inference.upstreams.http import HttpFailure, HttpFailureKind, HttpRequest

T = TypeVar("T")


def generation(text: str = "Hello", **fields: Any) -> pb.Generation:
    """A generation with one question."""
    made = pb.Generation(**fields)
    made.messages.add(role=pb.ROLE_USER).content.add().text.text = text
    return made


def profile(**fields: Any) -> Profile:
    """A generation profile."""
    values: dict[str, Any] = {"slug": "dragon", "kind": Kind.GENERATION, "price": Price(), "upstreams": ()}
    return Profile(**{**values, "max_output_tokens": 8192, **fields})


def upstream_request(
    generation: pb.Generation,
    *,
    upstream: str = "openai",
    dialect: "pb.Dialect.ValueType" = pb.DIALECT_OPENAI,
    base_url: str = "http://upstream.test",
    options: Mapping[str, Option] | None = None,
    thinking: bool = False,
) -> UpstreamRequest:
    """The first attempt of a call at an upstream that speaks `upstream`, for a caller who speaks `dialect`."""
    target = UpstreamTarget("primary", upstream, base_url, "model-1", "sk-secret-key-of-ours", options or {})
    return UpstreamRequest(
        call_id="0192f0c1-2345-7000-8000-000000000001",
        attempt=1,
        generation=generation,
        dialect=dialect,
        profile=profile(capabilities=Capabilities(thinking=thinking), upstreams=(target,)),
        target=target,
    )


@dataclass
class CannedResponse:
    """An answer from memory, in exactly these pieces."""

    pieces: list[bytes]
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200
    ends_with: HttpFailureKind | None = None

    def header(self, name: str) -> str:
        return self.headers.get(name, "")

    async def read_chunk(self) -> bytes:
        if self.pieces:
            return self.pieces.pop(0)
        if self.ends_with is not None:
            raise HttpFailure(self.ends_with)
        return b""

    async def read(self, limit: int) -> bytes:
        parts = []
        while chunk := await self.read_chunk():
            parts.append(chunk)
        return b"".join(parts)

    def expect_end(self, idle_s: float) -> None: ...

    def leave(self) -> None: ...

    def close(self) -> None: ...


@dataclass
class CannedHttp:
    """Gives one canned response and remembers what it was asked."""

    response: CannedResponse
    request: HttpRequest | None = None

    async def post(self, request: HttpRequest) -> CannedResponse:
        self.request = request
        return self.response


def run_now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that never really waits, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise AssertionError("the coroutine waited")


async def _collect(batches: AsyncIterator[Sequence[GenerationEvent]]) -> list[GenerationEvent]:
    events: list[GenerationEvent] = []
    async for batch in batches:
        assert batch, "an empty batch"
        events += batch
    return events


async def collect(upstream: Upstream, request: UpstreamRequest) -> list[GenerationEvent]:
    """All events of an attempt, checked."""
    events = await _collect(upstream.generate(request))
    assert_legal(events)
    return events


def read_answer(pieces: Sequence[bytes], request: UpstreamRequest, *, whole: bool = False) -> list[GenerationEvent]:
    """The events that an upstream's bytes become; raises UpstreamFailure as the adapter does."""
    content_type = "application/json" if whole else "text/event-stream; charset=utf-8"
    response = CannedResponse(list(pieces), {"content-type": content_type})
    upstream = dialects(CannedHttp(response)).generation[request.target.dialect]
    events = run_now(_collect(upstream.generate(request)))
    assert_legal(events)
    return events


def read_broken_answer(
    pieces: Sequence[bytes], request: UpstreamRequest, *, ends_with: HttpFailureKind | None = None, whole: bool = False
) -> tuple[list[GenerationEvent], UpstreamFailure]:
    """The events that were said before the failure, and the failure."""
    content_type = "application/json" if whole else "text/event-stream"
    response = CannedResponse(list(pieces), {"content-type": content_type}, ends_with=ends_with)
    batches = dialects(CannedHttp(response)).generation[request.target.dialect].generate(request)
    events: list[GenerationEvent] = []

    async def run() -> UpstreamFailure:
        try:
            async for batch in batches:
                events.extend(batch)
        except UpstreamFailure as failure:
            return failure
        raise AssertionError(f"no failure, but {fold(events)}")

    failure = run_now(run())
    assert_legal(events, complete=False)
    return events, failure


def assert_legal(events: Sequence[GenerationEvent], *, complete: bool = True) -> None:
    """The order that `GenerationEvent` promises, as an upstream has to keep it (`admitted` is not its business)."""
    kinds = [event.WhichOneof("kind") for event in events]
    if not complete and not kinds:
        return
    assert kinds[0] == "message_started", kinds
    assert kinds.count("message_started") == 1, kinds
    assert kinds.count("finished") == (1 if complete else 0), kinds
    if complete:
        assert kinds[-1] == "finished", kinds
    calls: set[str] = set()
    previous = ""
    for event, kind in zip(events, kinds, strict=True):
        if kind == "tool_call_started":
            started = event.tool_call_started
            assert started.id, "a call without id"
            assert started.name, "a call without name"
            assert started.id not in calls, f"{started.id} began twice"
            calls.add(started.id)
        elif kind == "tool_call_delta":
            assert previous in {"tool_call_started", "tool_call_delta"}, f"arguments after {previous}"
            assert event.tool_call_delta.arguments_json, "empty arguments"
        elif kind == "text_delta":
            assert event.text_delta.text, "empty text"
        elif kind == "thinking_delta":
            assert event.thinking_delta.text, "empty thinking"
        else:
            assert kind in {"message_started", "thinking_signature", "redacted_thinking", "opaque_block", "finished"}
        previous = kind or ""


def fold(events: Sequence[GenerationEvent]) -> list[tuple[str, ...]]:
    """An answer as its runs: what is said, however it was cut into pieces."""
    runs: list[tuple[str, ...]] = []
    for event in events:
        kind = event.WhichOneof("kind") or ""
        last = runs[-1] if runs else ("",)
        if kind == "text_delta":
            _extend(runs, last, "text", event.text_delta.text)
        elif kind == "thinking_delta":
            _extend(runs, last, "thinking", event.thinking_delta.text)
        elif kind == "tool_call_delta":
            runs[-1] = (*last[:3], last[3] + event.tool_call_delta.arguments_json)
        elif kind in _WHOLE:
            runs.append(_WHOLE[kind](getattr(event, kind)))
    return runs


def _extend(runs: list[tuple[str, ...]], last: tuple[str, ...], kind: str, text: str) -> None:
    if last[0] == kind:
        runs[-1] = (kind, last[1] + text)
    else:
        runs.append((kind, text))


def _finish(finished: pb.Finished) -> tuple[str, ...]:
    reason = pb.FinishReason.Name(finished.reason).removeprefix("FINISH_REASON_").lower()
    return ("finish", reason, finished.stop_sequence) if finished.stop_sequence else ("finish", reason)


_WHOLE: Mapping[str, Callable[[Any], tuple[str, ...]]] = {
    "thinking_signature": lambda proof: ("signature", proof.signature),
    "redacted_thinking": lambda block: ("redacted", block.data),
    "opaque_block": lambda block: ("opaque", block.type, block.json),
    "tool_call_started": lambda call: ("call", call.id, call.name, ""),
    "finished": _finish,
}


def usage(events: Sequence[GenerationEvent]) -> dict[str, int]:
    """The counts that an answer reports at its end."""
    return {field.name: value for field, value in events[-1].finished.usage.ListFields()}
