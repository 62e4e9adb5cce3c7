"""Whatever bytes come from callers or upstreams: no crash, no hang, no illegal sequence of events, no wrong status.

Streams, bodies and requests begin as valid ones and are damaged then, so that the damage reaches every layer; `make
fuzz` does it for minutes.
"""

import copy
import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mws.inference.v1 import generation_pb2 as pb

from edge.anthropic.requests import read_count_tokens, read_messages
from edge.ask import Ask
from edge.openai.requests import read_chat
from edge.problems import BadFieldError
from services.routing_and_inference.catalog import Option
from services.routing_and_inference.ports import FailureKind, UpstreamFailure
from services.routing_and_inference.prompt import drop_images, read_prompt
from services.routing_and_inference.upstream_options import PROVIDERS
from services.routing_and_inference.upstreams import anthropic_request, openai_request
from services.runtime.errors import InvalidRequestError
from tests.builders import generation, upstream_request
from tests.fakes import (
    Call,
    Reply,
    anthropic_frame,
    anthropic_frames,
    anthropic_message,
    openai_frames,
    openai_message,
)
from tests.wire.through import SHAPES, Heard, check_stream, hear, request_from

REPLIES = [
    Reply("Grüße 🙂", thinking="Hm"),
    Reply("I look. ", calls=[Call("f", '{"x":"é","y":[1,{"z":null}]}', "functions.f:0"), Call("g", "{}", "b")]),
    Reply(calls=[Call("f", '{"x":1}', "a"), Call("f", '{"x":2}', "a2")], piece=2),
    Reply(),
]
REDACTED = anthropic_frame(
    {"type": "content_block_start", "index": 9, "content_block": {"type": "redacted_thinking", "data": "x"}}
)
CITED = anthropic_frame(
    {"type": "content_block_delta", "index": 1, "delta": {"type": "citations_delta", "citation": {"a": 1}}}
)
FRAMES: dict[str, list[list[bytes]]] = {
    "openai": [openai_frames(reply) for reply in REPLIES],
    "anthropic": [[*anthropic_frames(reply)[:-2], REDACTED, CITED, *anthropic_frames(reply)[-2:]] for reply in REPLIES],
}
BODIES: dict[str, list[Any]] = {
    "openai": [openai_message(reply) for reply in REPLIES],
    "anthropic": [anthropic_message(reply) for reply in REPLIES],
}

# Each example is heard four times, so the quick suite makes do with fewer; `make fuzz` has its own profile.
thrifty = settings(max_examples=min(settings().max_examples, max(settings().max_examples // 3, 20)))

scalars = st.none() | st.booleans() | st.integers(-2, 2**65) | st.floats() | st.text(max_size=6)
words = st.sampled_from(
    [
        "",
        "null",
        "error",
        "text",
        "tool_use",
        "thinking",
        "message_start",
        "message_stop",
        "stop",
        "length",
        "{",
        '"{}"',
    ]
)
values = st.recursive(
    scalars | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything inside a JSON value."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def damaged(value: Any, draw: Callable[[st.SearchStrategy[Any]], Any], times: int) -> Any:
    """A JSON value with some of its members replaced, removed or renamed."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(0, times))):
        paths = places(value)
        if not paths:
            return value
        *parents, last = draw(st.sampled_from(paths))
        holder = value
        for key in parents:
            holder = holder[key]
        how = draw(st.sampled_from(["replace", "remove", "twice"]))
        if how == "replace":
            holder[last] = draw(values)
        elif how == "twice" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        elif isinstance(holder, dict):
            holder.pop(last)
    return value


def damaged_frame(frame: bytes, draw: Callable[[st.SearchStrategy[Any]], Any]) -> bytes:
    head, found, payload = frame.partition(b"data: ")
    try:
        value = json.loads(payload)
    except ValueError:
        return frame
    return head + found + json.dumps(damaged(value, draw, 2)).encode() + b"\n\n"


@st.composite
def streams(draw: Callable[[st.SearchStrategy[Any]], Any], upstream: str) -> list[bytes]:
    """The pieces of a stream in which frames are missing, repeated, moved, foreign or broken."""
    frames = list(draw(st.sampled_from(FRAMES[upstream])))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(frames) - 1))
        how = draw(st.sampled_from(["drop", "twice", "move", "damage", "foreign", "bytes"]))
        if how == "drop":
            del frames[at]
        elif how == "twice":
            frames.insert(draw(st.integers(0, len(frames))), frames[at])
        elif how == "move":
            frames.insert(draw(st.integers(0, len(frames) - 1)), frames.pop(at))
        elif how == "damage":
            frames[at] = damaged_frame(frames[at], draw)
        elif how == "foreign":
            frames.insert(at, draw(st.sampled_from([frame for made in FRAMES.values() for f in made for frame in f])))
        else:
            cut = draw(st.integers(0, len(frames[at])))
            frames[at] = frames[at][:cut] + draw(st.binary(max_size=6)) + frames[at][cut:]
        if not frames:
            break
    data = b"".join(frames)
    data = data.replace(b"\n", draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"])))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]


def check(heard: Heard) -> None:
    """A legal stream, a whole reply, or a failure that is not the caller's."""
    assert heard.status in (200, 400, 502, 503, 504, 529)
    if heard.is_stream:
        check_stream(heard)
    else:
        assert isinstance(json.loads(heard.body), dict)


@pytest.mark.parametrize("upstream", FRAMES)
@thrifty
@given(data=st.data())
def test_no_stream_of_an_upstream_does_harm(upstream: str, data: st.DataObject) -> None:
    pieces = data.draw(streams(upstream))
    for shape in SHAPES:
        streamed = hear(pieces, request_from(shape, upstream, stream=True), shape)
        check(streamed)
        whole = hear(pieces, request_from(shape, upstream, stream=False), shape, is_whole=False)
        check(whole)
        if whole.status == 200:  # what can be heard whole can be heard in pieces
            assert streamed.is_stream
            assert streamed.error is None
        elif streamed.is_stream:
            assert streamed.error is not None


@pytest.mark.parametrize("upstream", BODIES)
@thrifty
@given(data=st.data())
def test_no_body_of_an_upstream_does_harm(upstream: str, data: st.DataObject) -> None:
    body = damaged(data.draw(st.sampled_from(BODIES[upstream])), data.draw, 4)
    raw = json.dumps(body).encode()
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(raw)))
        raw = raw[:at] + data.draw(st.binary(max_size=4)) + raw[at:]
    status = data.draw(st.sampled_from([200, 200, 200, 400, 401, 404, 429, 500]))
    for shape in SHAPES:
        for stream in (True, False):
            check(hear([raw], request_from(shape, upstream, stream=stream), shape, status=status, is_whole=True))


@given(st.lists(st.binary(max_size=30), max_size=5), st.sampled_from(sorted(FRAMES)))
def test_no_bytes_do_harm(pieces: list[bytes], upstream: str) -> None:
    pieces = [piece for piece in pieces if piece]
    for shape in SHAPES:
        check(hear(pieces, request_from(shape, upstream, stream=True), shape))


# ---- requests ----

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
MESSAGES: dict[str, Any] = {
    "model": "m",
    "max_tokens": 9,
    "system": [{"type": "text", "text": "Be brief", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]},
        {"role": "system", "content": "now"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm", "signature": "s"},
            {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "I look"},
            {"type": "tool_use", "id": "toolu:1", "name": "f", "input": {"x": 1}},
            {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu:1", "is_error": True,
             "content": [{"type": "text", "text": "x"}, IMAGE, {"type": "tool_reference", "tool_name": "g"}]},
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "d"}, "title": "t"},
            {"type": "search_result", "source": "u", "title": "t", "content": [{"type": "text", "text": "y"}]},
        ]},
        {"role": "system", "content": [{"type": "tool_addition", "tool": {"type": "tool_definition", "definition":
         {"name": "h", "input_schema": {"type": "object"}}}}]},
        {"role": "assistant", "content": "Once "},
    ],
    "tools": [
        {"name": "f", "description": "d", "input_schema": {"type": "object", "properties": {"x": {"type": "integer"}}}},
        {"name": "g", "defer_loading": True, "input_schema": {}},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 2},
    ],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "thinking": {"type": "adaptive", "display": "omitted"},
    "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    "stop_sequences": ["a", "b", "c", "d", "e"],
    "temperature": 0.5, "top_k": 3, "stream": True, "metadata": {"user_id": "u"},
}  # fmt: skip
CALL = {"id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
CHAT: dict[str, Any] = {
    "model": "m",
    "max_completion_tokens": 9,
    "messages": [
        {"role": "developer", "content": "Be brief"},
        {"role": "user", "name": "n", "content": [
            {"type": "text", "text": "a"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk=", "detail": "low"}},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,aGk="}},
            {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
        ]},
        {"role": "assistant", "content": None, "reasoning_content": "Hm", "tool_calls": [CALL, {**CALL, "id": "b"}]},
        {"role": "tool", "tool_call_id": "functions.f:0", "content": "x"},
        {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "y"}]},
        {"role": "system", "content": "now"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No"}], "function_call":
         {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "z"},
    ],
    "tools": [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}},
        {"type": "custom", "custom": {"name": "c"}},
    ],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": False,
    "response_format": {"type": "json_schema", "json_schema": {"name": "o", "schema": {"type": "object"}}},
    "reasoning_effort": "high", "stop": ["a", "b"], "temperature": 1.5, "seed": 7, "logit_bias": {"1": 2},
    "stream": True, "stream_options": {"include_usage": True}, "user": "u", "top_k": 2, "surprise": {"a": 1},
}  # fmt: skip
READERS: list[tuple[Callable[[bytes], Ask], dict[str, Any]]] = [
    (read_messages, MESSAGES),
    (read_count_tokens, MESSAGES),
    (read_chat, CHAT),
]
OPTIONS: Sequence[dict[str, Option]] = [{}, *(dict(options) for options in PROVIDERS.values())]
_ID = re.compile(r"[a-zA-Z0-9_-]+")


@given(data=st.data(), at=st.integers(0, len(READERS) - 1), options=st.sampled_from(OPTIONS), sees=st.booleans())
def test_no_request_does_harm(data: st.DataObject, at: int, options: dict[str, Option], sees: bool) -> None:
    read, valid = READERS[at]
    raw = json.dumps(damaged(valid, data.draw, 3)).encode()
    if data.draw(st.integers(0, 9)) == 0:
        cut = data.draw(st.integers(0, len(raw)))
        raw = raw[:cut] + data.draw(st.binary(max_size=4)) + raw[cut:]
    try:
        ask = read(raw)
        prompt = read_prompt(ask.generation, has_vision=sees)
    except (BadFieldError, InvalidRequestError):
        return
    if prompt.dropped_images:
        drop_images(ask.generation)
    check_written(ask, options)


def check_written(ask: Ask, options: dict[str, Option]) -> None:
    for upstream, write in (("openai", write_openai), ("anthropic", write_anthropic)):
        try:
            write(upstream_request(ask.generation, upstream=upstream, dialect=ask.dialect, options=options))
        except UpstreamFailure as failure:
            if failure.kind is not FailureKind.REJECTED or not failure.message:
                raise


def write_openai(request: Any) -> None:
    body = json.loads(openai_request.write_request(request).body)
    assert body["messages"]
    for message in body["messages"]:
        assert message["role"] in ("system", "developer", "user", "assistant", "tool")
        assert message["content"] or message["role"] in ("assistant", "tool"), message
        for call in message.get("tool_calls", ()):
            assert call["id"]
    assert body.get("tools", [1])
    assert ("tool_choice" in body or "parallel_tool_calls" in body) <= ("tools" in body)


def write_anthropic(request: Any) -> None:
    body = json.loads(anthropic_request.write_request(request).body)
    roles = [message["role"] for message in body["messages"]]
    assert set(roles) <= {"user", "assistant", "system"}
    assert all(pair != ("user", "user") for pair in pairwise(roles))
    is_rewritten = request.target.options.get("tool_ids") != "verbatim"
    for message in body["messages"]:
        assert message["content"], message
        for block in message["content"] if isinstance(message["content"], list) else ():
            assert block.get("text", "x") or request.dialect == pb.DIALECT_ANTHROPIC, block
            if block.get("type") == "tool_use" and is_rewritten:
                assert _ID.fullmatch(block["id"]), block
                assert isinstance(block["input"], dict)
    assert ("tool_choice" in body) <= ("tools" in body)


def test_the_valid_beginnings_are_valid() -> None:
    for read, valid in READERS:
        ask = read(json.dumps(valid).encode())
        read_prompt(ask.generation, has_vision=True)
    for upstream, frames in FRAMES.items():
        for made in frames:
            heard = hear(made, request_from("anthropic", upstream, stream=True, made=generation()), "anthropic")
            assert heard.error is None
