"""Whatever an upstream's stream looks like, a Chat Completions client hears a stream that no client stumbles over.

One row per anomaly that clients were seen to fail on, and per mistake that other gateways made; each through the real
readers, the real writer and the official SDK's accumulator. `check_stream` holds the role, the numbering and the end.
"""

import json
from collections.abc import Sequence
from typing import Any

import openai
import pytest
from mws.inference.v1 import generation_pb2 as pb

from edge.answer import Head
from edge.openai.chunks import ChatFold, ChatStream
from edge.openai.requests import read_chat
from services.routing_and_inference.upstreams.openai_request import write_request
from tests.wire.edge import events as ev
from tests.wire.through import Heard, Said, check_stream, folded, hear, request_from, said

DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
ARGUMENTS = '{"city":"Paris"}'
HEAD = Head("01994a3e-0000-7000-8000-000000000000", 1763770000, "m", 7)
Chunk = dict[str, Any]


def chunk(delta: Any = None, finish: str | None = None, index: int = 0, **more: Any) -> Chunk:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice], **more}


def usage(**counts: Any) -> Chunk:
    return {"choices": [], "usage": {**USAGE, **counts}}


def piece(arguments: str | None = "", name: str | None = None, call_id: str | None = None, **more: Any) -> Chunk:
    """A piece of a tool call; what is None is left out."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    made = {"index": 0, "type": "function", "function": function, **more}
    return made if call_id is None else {"id": call_id, **made}


def calls(*pieces: Chunk) -> Chunk:
    return chunk({"tool_calls": list(pieces)})


def hear_chunks(*chunks: Chunk, done: bool = True, functions_only: bool = True) -> Heard:
    body = b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in chunks) + (DONE if done else b"")
    heard = hear([body], request_from("openai", "openai", stream=True), "openai")
    if functions_only:
        check_stream(heard)
    return heard


def chunks_of(heard: Heard) -> list[Chunk]:
    payloads = [frame[6:] for frame in heard.body.split(b"\n\n") if frame.startswith(b"data: {")]
    return [json.loads(payload) for payload in payloads]


def deltas_of(heard: Heard) -> list[Chunk]:
    return [one["choices"][0]["delta"] for one in chunks_of(heard) if one["choices"]]


ROLE = chunk({"role": "assistant", "content": ""})
HELLO = chunk({"content": "Hello"})
STOP = chunk({}, "stop")
CALLED = chunk({}, "tool_calls")
HI = Said("Hello", end="stop", input_tokens=11, output_tokens=7)
PARIS = Said(calls=(("call_1", "f", ARGUMENTS),), end="tool_calls", input_tokens=11, output_tokens=7)
BOTH = (("call_1", "f", '{"a":1}'), ("call_2", "g", '{"b":2}'))
TWO = Said(calls=BOTH, end="tool_calls", input_tokens=11, output_tokens=7)


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        pytest.param([HELLO, STOP, usage()], HI, id="no role ever"),
        pytest.param([ROLE, HELLO, usage()], HI, id="no finish_reason before DONE"),
        pytest.param([ROLE, chunk(None), HELLO, chunk(None, "stop"), usage()], HI, id="null deltas"),
        pytest.param(
            [{"choices": [{"index": 0}]}, HELLO, {"choices": [{"index": 0, "finish_reason": "stop"}]}, usage()],
            HI,
            id="missing deltas",
        ),
        pytest.param([{"id": "", "choices": []}, ROLE, HELLO, STOP, usage()], HI, id="first chunk without choices"),
        pytest.param(
            [ROLE | {"usage": USAGE}, HELLO | {"usage": USAGE}, STOP | {"usage": USAGE}], HI, id="usage on every chunk"
        ),
        pytest.param([ROLE, HELLO, STOP | {"usage": USAGE}], HI, id="usage beside the finish_reason"),
        pytest.param([ROLE, HELLO, STOP | {"x_groq": {"usage": USAGE}}], HI, id="usage in a vendor's member"),
        pytest.param([ROLE, chunk({"content": "Hello"}, ""), STOP, usage()], HI, id="empty finish_reason early"),
        pytest.param([ROLE, chunk({"content": "Hello"}, "stop"), usage()], HI, id="content beside the finish_reason"),
        pytest.param([chunk({"content": "Hel"}), STOP, chunk({"content": "lo"}), usage()], HI, id="content after it"),
        pytest.param([chunk({"role": "assistant", "content": "Hello"}), STOP, usage()], HI, id="content beside role"),
        pytest.param([chunk({"content": "Hello", "tool_calls": []}), STOP, usage()], HI, id="empty list of calls"),
        pytest.param([HELLO, chunk({}, "eos"), usage()], HI, id="a finish_reason that nobody knows"),
        pytest.param([HELLO, chunk({"content": "no"}, index=1), STOP, usage()], HI, id="a second choice"),
        pytest.param([chunk({"content": "no"}, index=1), HELLO, STOP, usage()], HI, id="the second choice first"),
        pytest.param(
            [calls(piece(ARGUMENTS, "f", "call_1", type=None)), CALLED, usage()], PARIS, id="a call without a type"
        ),
        pytest.param(
            [calls(piece("", "f", "call_1", index=None)), calls(piece(ARGUMENTS, index=None)), CALLED, usage()],
            PARIS,
            id="a call without an index",
        ),
        pytest.param(
            [
                calls(piece('{"city":', "f", "call_1")),
                calls(piece('"Par', "f", "call_1")),
                calls(piece('is"}', "f", "call_1")),
                CALLED,
                usage(),
            ],
            PARIS,
            id="id and name in every piece",
        ),
        pytest.param(
            [calls(piece("", "f", "call_1")), calls(piece(ARGUMENTS, "", "")), CALLED, usage()],
            PARIS,
            id="id and name empty later",
        ),
        pytest.param(
            [calls(piece('{"city":', None, "call_1")), calls(piece('"Paris"}', "f")), CALLED, usage()],
            PARIS,
            id="arguments before the name",
        ),
        pytest.param(
            [calls(piece(ARGUMENTS, "f", "call_1", index=1)), CALLED, usage()], PARIS, id="calls numbered from 1"
        ),
        pytest.param([calls(piece(ARGUMENTS, "f", "call_1")), STOP, usage()], PARIS, id="stop beside calls"),
        pytest.param(
            [
                calls(piece("", "f", "call_1")),
                calls(piece("", "g", "call_2", index=1)),
                calls(piece('{"b":', index=1)),
                calls(piece('{"a":1}')),
                calls(piece("2}", index=1)),
                CALLED,
                usage(),
            ],
            TWO,
            id="calls in parallel",
        ),
        pytest.param(
            [calls(piece('{"a":1}', "f", "call_1"), piece('{"b":2}', "g", "call_2", index=1)), CALLED, usage()],
            TWO,
            id="two calls in one chunk",
        ),
        pytest.param(
            [calls(piece(None, "f", "call_1", function={"name": "f", "arguments": None})), calls(piece("{}")), CALLED],
            Said(calls=(("call_1", "f", "{}"),), end="tool_calls", input_tokens=9, output_tokens=1),
            id="null arguments, then an object",
        ),
        pytest.param(
            [calls(piece("", "f", "call_1")), CALLED, usage()],
            Said(calls=(("call_1", "f", "{}"),), end="tool_calls", input_tokens=11, output_tokens=7),
            id="no arguments",
        ),
        pytest.param(
            [chunk({"content": "Look.", "tool_calls": [piece(ARGUMENTS, "f", "call_1")]}), CALLED, usage()],
            Said("Look.", calls=PARIS.calls, end="tool_calls", input_tokens=11, output_tokens=7),
            id="text and a call in one chunk",
        ),
        pytest.param(
            [chunk({"reasoning_content": "Hm", "content": "Hello", "x": 1}), STOP, usage()],
            Said("Hello", "Hm", end="stop", input_tokens=11, output_tokens=7),
            id="reasoning and text in one chunk",
        ),
        pytest.param(
            [chunk({"reasoning": "Hm"}), HELLO, chunk({"reasoning": " so"}), STOP, usage()],
            Said("Hello", "Hm so", end="stop", input_tokens=11, output_tokens=7),
            id="reasoning under its other name, and after text",
        ),
        pytest.param(
            [HELLO, chunk({}, "length"), usage(completion_tokens=3, total_tokens=14)],
            Said("Hello", end="length", input_tokens=11, output_tokens=3),
            id="cut by its length",
        ),
        pytest.param(
            [HELLO, STOP, usage(prompt_tokens=307, completion_tokens=26, total_tokens=560)],
            Said("Hello", end="stop", input_tokens=307, output_tokens=253),
            id="reasoning that only the total counts",
        ),
    ],
)
def test_an_odd_stream_is_heard_as_a_plain_one(chunks: Sequence[Chunk], expected: Said) -> None:
    assert said(hear_chunks(*chunks)) == expected


def test_a_stream_without_usage_is_estimated_and_still_told() -> None:
    told = chunks_of(hear_chunks(ROLE, HELLO, STOP))[-1]["usage"]
    assert told["prompt_tokens"] > 0
    assert told["total_tokens"] == told["prompt_tokens"] + told["completion_tokens"]


@pytest.mark.parametrize("call_id", [None, ""])
def test_a_call_without_an_id_gets_one(call_id: str | None) -> None:
    (made,) = said(hear_chunks(calls(piece(ARGUMENTS, "f", call_id)), CALLED, usage())).calls
    assert made[0].startswith("call_")
    assert made[1:] == ("f", ARGUMENTS)


def test_a_second_call_of_the_same_id_is_a_call_of_its_own() -> None:
    heard = hear_chunks(calls(piece('{"a":1}', "f", "x"), piece('{"b":2}', "g", "x", index=1)), CALLED, usage())
    first, second = said(heard).calls
    assert (first, second[1:]) == (("x", "f", '{"a":1}'), ("g", '{"b":2}'))
    assert second[0] != "x"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param('{"city":', '{"city":', id="a cut object stays cut"),
        pytest.param('{"a":1}}', '{"a":1}}', id="an object and more stays both"),
        pytest.param("not JSON", '{"_raw":"not JSON"}', id="words become an object"),
    ],
)
def test_arguments_that_are_no_json_fail_nothing(text: str, expected: str) -> None:
    (made,) = folded(hear_chunks(calls(piece(text, "f", "call_1")), CALLED, usage()))["calls"]
    assert made[3] == expected


def test_a_call_of_a_custom_tool_is_told_whole_and_last() -> None:
    custom = {"index": 0, "id": "call_c", "type": "custom", "custom": {"name": "c", "input": "a"}}
    function, rest = calls(piece(ARGUMENTS, "f", "call_1", index=1)), calls({"index": 0, "custom": {"input": "b"}})
    heard = hear_chunks(calls(custom), function, rest, CALLED, functions_only=False)
    whole = {"id": "call_c", "type": "custom", "custom": {"name": "c", "input": "ab"}}
    assert deltas_of(heard)[-2] == {"tool_calls": [{"index": 1, **whole}]}
    message = {"role": "assistant", "content": None, "tool_calls": [custom]}
    body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}).encode()
    reply = json.loads(hear([body], request_from("openai", "openai", stream=False), "openai", is_whole=True).body)
    assert reply["choices"][0]["message"]["tool_calls"] == [{**whole, "custom": {"name": "c", "input": "a"}}]
    assert reply["choices"][0]["finish_reason"] == "tool_calls"


def test_a_custom_tool_may_be_chosen() -> None:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "custom", "custom": {"name": "c", "format": {"type": "text"}}}],
        "tool_choice": {"type": "custom", "custom": {"name": "c"}},
    }
    made = read_chat(json.dumps(body).encode()).generation
    sent = json.loads(write_request(request_from("openai", "openai", stream=False, made=made)).body)
    assert (sent["tools"], sent["tool_choice"]) == (body["tools"], body["tool_choice"])


def test_nothing_empty_stands_before_a_call() -> None:
    heard = hear_chunks(ROLE, chunk({"content": ""}), calls(piece(ARGUMENTS, "f", "call_1")), CALLED, usage())
    first, *rest = deltas_of(heard)
    assert first == {"role": "assistant", "content": None, "refusal": None}
    assert [list(delta) for delta in rest] == [["tool_calls"], ["tool_calls"], []]
    assert all("arguments" in call["function"] for delta in rest[:-1] for call in delta["tool_calls"])


def test_the_first_words_after_a_change_of_kind_are_kept() -> None:
    heard = hear_chunks(
        chunk({"reasoning_content": "Hm"}),
        chunk({"content": "First"}),
        calls(piece('{"a"', "f", "call_1")),
        calls(piece(":1}")),
        chunk({"content": "Then"}),
        CALLED,
        usage(),
    )
    assert said(heard) == Said("FirstThen", "Hm", (("call_1", "f", '{"a":1}'),), "tool_calls", 11, 7)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_letters_cut_between_bytes_arrive_whole(line_end: bytes) -> None:
    text = "Grüße 🙂"
    frames = [chunk({"content": text}), chunk({}, "stop"), usage()]
    lines = [b"data: " + json.dumps(one, ensure_ascii=False).encode() for one in frames]
    body = (line_end * 2).join([b": hello", *lines, b"data: [DONE]", b""])
    heard = hear(
        [body[at : at + 1] for at in range(len(body))], request_from("openai", "openai", stream=True), "openai"
    )
    assert said(heard).text == text


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([ROLE, HELLO], id="cut after text"),
        pytest.param([calls(piece('{"ci', "f", "call_1"))], id="cut within a call"),
        pytest.param([ROLE, HELLO, {"error": {"message": "boom", "code": 500}}], id="an error chunk"),
        pytest.param([HELLO, chunk({}, "error", error={"code": 502, "message": "boom"})], id="an error beside choices"),
    ],
)
def test_a_stream_that_breaks_ends_in_a_typed_error(chunks: Sequence[Chunk]) -> None:
    heard = hear_chunks(*chunks, done=False)
    with pytest.raises(openai.APIError) as caught:
        folded(heard)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "server_error"
    assert "boom" not in caught.value.message
    assert not heard.body.endswith(DONE)


def test_cached_tokens_are_part_of_the_prompt_and_counted_once() -> None:
    message = {
        "type": "message_start",
        "message": {"usage": {"input_tokens": 10, "cache_read_input_tokens": 90, "cache_creation_input_tokens": 5}},
    }
    frames: list[dict[str, Any]] = [
        message,
        message,  # a second envelope says nothing new
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]
    body = b"".join(b"event: %b\ndata: %b\n\n" % (f["type"].encode(), json.dumps(f).encode()) for f in frames)
    heard = hear([body], request_from("openai", "anthropic", stream=True), "openai")
    check_stream(heard)
    told = chunks_of(heard)[-1]["usage"]
    assert (told["prompt_tokens"], told["completion_tokens"], told["total_tokens"]) == (105, 2, 107)
    assert told["prompt_tokens_details"]["cached_tokens"] == 90


def test_streams_share_nothing() -> None:
    one, other = ChatStream(HEAD), ChatStream(HEAD)
    left, right = [ev.call("a", "f"), ev.arguments("{}")], [ev.text("x")]
    mixed = [one.feed(left[:1]), other.feed(right), one.feed(left[1:])]
    assert b"".join(mixed[::2]) == ChatStream(HEAD).feed(left)
    assert mixed[1] == ChatStream(HEAD).feed(right)


def test_the_usage_chunk_comes_only_when_asked_for() -> None:
    answer = [ev.text("x"), ev.finished()]
    with_usage, without = ChatStream(HEAD, include_usage=True), ChatStream(HEAD)
    frames = (with_usage.feed(answer) + without.feed(answer)).split(b"\n\n")
    told = [json.loads(frame[6:]) for frame in frames if frame.startswith(b"data: {")]
    assert [one.get("usage", "absent") for one in told[:2]] == [None, None]
    assert (told[2]["choices"], told[2]["usage"]["total_tokens"]) == ([], 16)
    assert ["usage" in one for one in told[3:]] == [False, False]


@pytest.mark.parametrize("reason", pb.FinishReason.values())
def test_every_reply_has_the_keys_that_the_vendor_requires(reason: pb.FinishReason.ValueType) -> None:
    fold = ChatFold(HEAD)
    fold.feed([ev.call("c", "f"), ev.finished(reason)])
    reply = json.loads(fold.reply())
    (choice,) = reply["choices"]
    assert {"id", "object", "created", "model", "choices", "usage"} <= set(reply)
    assert set(choice) == {"finish_reason", "index", "message", "logprobs"}
    assert {"role", "content", "refusal"} <= set(choice["message"])
    assert choice["finish_reason"] in {"stop", "length", "tool_calls", "content_filter"}
    assert choice["message"]["tool_calls"] == [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    ]
