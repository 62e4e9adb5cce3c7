"""A stream folded by the official SDKs' own accumulators is the reply that the same events give without streaming."""

import json
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mws.inference.v1 import generation_pb2 as pb

from edge.answer import Head
from edge.anthropic.events import PING as ANTHROPIC_PING
from edge.anthropic.events import MessageFold, MessageStream
from edge.openai.chunks import PING as OPENAI_PING
from edge.openai.chunks import ChatFold, ChatStream
from tests.wire.edge import events as ev

HEAD = Head("01994a3e-0000-7000-8000-000000000000", 1763770000, "claude-x", 7)
SSE = {"content-type": "text/event-stream; charset=utf-8"}


def _transport(body: bytes, headers: dict[str, str]) -> httpx2.MockTransport:
    return httpx2.MockTransport(lambda _request: httpx2.Response(200, content=body, headers=headers))


def fold_anthropic(body: bytes) -> dict[str, Any]:
    with (
        anthropic.Anthropic(api_key="k", http_client=httpx2.Client(transport=_transport(body, SSE))) as client,
        client.messages.stream(model="m", max_tokens=1, messages=[]) as stream,
    ):
        return stream.get_final_message().model_dump(exclude_none=True)


def whole_anthropic(body: bytes) -> dict[str, Any]:
    transport = _transport(body, {"content-type": "application/json"})
    with anthropic.Anthropic(api_key="k", http_client=httpx2.Client(transport=transport)) as client:
        return client.messages.create(model="m", max_tokens=1, messages=[]).model_dump(exclude_none=True)


def fold_openai(body: bytes) -> dict[str, Any]:
    with (
        openai.OpenAI(api_key="k", http_client=httpx2.Client(transport=_transport(body, SSE))) as client,
        client.chat.completions.stream(model="m", messages=[]) as stream,
    ):
        stream.until_done()  # the final completion itself is refused for `length` and `content_filter`
        return dict(stream.current_completion_snapshot.model_dump(exclude_none=True))


def whole_openai(body: bytes) -> dict[str, Any]:
    transport = _transport(body, {"content-type": "application/json"})
    with openai.OpenAI(api_key="k", http_client=httpx2.Client(transport=transport)) as client:
        return client.chat.completions.create(model="m", messages=[]).model_dump(exclude_none=True)


@given(ev.answers(), st.booleans(), st.booleans())
def test_a_message_stream_folds_to_the_whole_message(answer: list[ev.Event], shows: bool, omits: bool) -> None:
    stream = MessageStream(HEAD, shows_thinking=shows, omits_thinking_text=omits)
    frames = stream.start() + b"".join(ANTHROPIC_PING + stream.feed([event]) for event in answer)
    fold = MessageFold(HEAD, shows_thinking=shows, omits_thinking_text=omits)
    fold.feed(answer)

    folded, whole = fold_anthropic(frames), whole_anthropic(fold.reply())
    for block in folded["content"]:
        block.pop("parsed_output", None)
    assert folded == whole


@given(ev.answers(), st.integers(1, 5))
def test_batches_have_no_meaning(answer: list[ev.Event], size: int) -> None:
    one, other = MessageStream(HEAD), MessageStream(HEAD)
    batches = [answer[at : at + size] for at in range(0, len(answer), size)]

    assert one.feed(answer) == b"".join(other.feed(batch) for batch in batches)


@given(ev.answers())
def test_message_frames_keep_the_invariants_of_the_protocol(answer: list[ev.Event]) -> None:
    stream = MessageStream(HEAD)
    frames = parse_frames(stream.start() + stream.feed(answer))
    kinds = [name for name, _ in frames]
    open_index, next_index = None, 0
    for name, data in frames:
        assert data["type"] == name
        if name == "content_block_start":
            assert (open_index, data["index"]) == (None, next_index)
            open_index, next_index = next_index, next_index + 1
        elif name == "content_block_delta":
            assert data["index"] == open_index
        elif name == "content_block_stop":
            assert data["index"] == open_index
            open_index = None

    assert open_index is None
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert [kinds.count(kind) for kind in ("message_start", "message_delta", "message_stop")] == [1, 1, 1]
    assert dict(frames)["message_start"]["message"]["usage"]["input_tokens"] > 0


@given(ev.answers(), st.booleans(), st.booleans())
def test_a_chat_stream_folds_to_the_whole_completion(answer: list[ev.Event], shows: bool, is_slow: bool) -> None:
    stream = ChatStream(HEAD, include_usage=True, shows_thinking=shows)
    head = stream.start() if is_slow else b""  # a head that was held long enough leaves before any content is known
    frames = b"".join(OPENAI_PING + stream.feed([event]) for event in answer)
    fold = ChatFold(HEAD, shows_thinking=shows)
    fold.feed(answer)

    folded, whole = fold_openai((head or stream.start()) + frames), whole_openai(fold.reply())
    assert _completed(folded) == _completed(whole)


def _completed(completion: dict[str, Any]) -> dict[str, Any]:
    """Everything, less what only the helper adds (parsed forms, positions) or only a whole reply has (annotations)."""
    message = completion["choices"][0]["message"]
    for call in message.get("tool_calls") or ():
        call.pop("index", None)
        call["function"].pop("parsed_arguments", None)
    for name in ("parsed", "annotations"):
        message.pop(name, None)
    return completion


@given(ev.answers())
def test_chat_chunks_keep_the_invariants_of_the_protocol(answer: list[ev.Event]) -> None:
    stream = ChatStream(HEAD)
    frames = [frame[6:] for frame in (stream.start() + stream.feed(answer)).split(b"\n\n")[:-1]]
    chunks = [json.loads(frame) for frame in frames[:-1]]
    calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", ())]

    assert frames[-1] == b"[DONE]"
    assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    assert all("usage" not in chunk and chunk["id"] == chunks[0]["id"] for chunk in chunks)
    assert [chunk["choices"][0]["finish_reason"] is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    named = [call["index"] for call in calls if "id" in call]
    assert named == list(range(len(named)))
    assert all(json.loads(text) is not None for text in _arguments(calls).values())


def _arguments(calls: list[dict[str, Any]]) -> dict[int, str]:
    joined: dict[int, str] = {}
    for call in calls:
        joined[call["index"]] = joined.get(call["index"], "") + call["function"]["arguments"]
    return joined


def parse_frames(body: bytes) -> list[tuple[str, dict[str, Any]]]:
    frames = []
    for frame in body.decode().split("\n\n")[:-1]:
        name, data = frame.split("\n", 1)
        frames.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return frames


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param('{"city": "Par', {}, id="a cut string is dropped with its key"),
        pytest.param('{"a": 1, "b": [1, 2', {"a": 1, "b": [1, 2]}, id="open brackets are closed"),
        pytest.param('{"a": tru', {}, id="a cut word is dropped"),
        pytest.param('{"a": {"b": "c"}, "d', {"a": {"b": "c"}}, id="a cut key is dropped"),
    ],
)
def test_cut_arguments_are_the_same_streamed_and_whole(text: str, expected: dict[str, Any]) -> None:
    answer = [ev.call("c1", "f"), ev.arguments(text), ev.finished(pb.FINISH_REASON_LENGTH)]
    stream, fold = MessageStream(HEAD), MessageFold(HEAD)
    fold.feed(answer)

    assert fold_anthropic(stream.start() + stream.feed(answer))["content"][0]["input"] == expected
    assert json.loads(fold.reply())["content"][0]["input"] == expected
