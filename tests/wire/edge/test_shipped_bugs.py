"""Bugs that other gateways have shipped, each as the fact that holds here: an upstream's bytes in, the SDK's view out.

Owns what concerns Anthropic output; requests in that dialect towards Chat Completions are at the end.
"""

import json
from typing import Any

import pytest
from mws.inference.v1 import generation_pb2 as pb

from edge.answer import Head
from edge.anthropic.blocks import UNSIGNED
from edge.anthropic.events import MessageStream
from edge.anthropic.requests import read_messages
from services.routing_and_inference.upstreams.anthropic_request import write_request as write_messages
from services.routing_and_inference.upstreams.openai_request import write_request as write_chat
from tests.builders import upstream_request
from tests.rule_book import stream_problems
from tests.wire.edge import events as ev
from tests.wire.through import Heard, folded, hear, request_from


def chunk(finish: str | None = None, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: %b\n\n" % json.dumps({"id": "c", "object": "chat.completion.chunk", "choices": [choice]}).encode()


def piece(index: int = 0, arguments: str = "", **more: Any) -> dict[str, Any]:
    name = more.pop("name", None)
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {"index": index, "function": function, **more}


def usage(prompt: int = 20, completion: int = 4, cached: int = 0) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    body = {"choices": [], "usage": {**counts, "prompt_tokens_details": {"cached_tokens": cached}}}
    return b"data: %b\n\n" % json.dumps(body).encode()


DONE = b"data: [DONE]\n\n"
WEATHER = {"type": "tool_use", "name": "f", "input": {"city": "Paris"}}


def stream(*chunks: bytes) -> Heard:
    """What an Anthropic caller hears of a Chat Completions stream; legal in any case."""
    heard = hear(chunks, request_from("anthropic", "openai", stream=True), "anthropic")
    if heard.is_stream:
        assert stream_problems(heard.body) == []
    return heard


def message(*chunks: bytes) -> Any:
    return folded(stream(*chunks))


def blocks(*chunks: bytes) -> list[dict[str, Any]]:
    """The content without ids."""
    return [{k: v for k, v in block.items() if k != "id"} for block in message(*chunks)["content"]]


def frames(heard: Heard) -> list[dict[str, Any]]:
    return [json.loads(frame.split(b"data: ", 1)[1]) for frame in heard.body.split(b"\n\n")[:-1]]


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def thought(value: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": value, "signature": UNSIGNED}


CALL = chunk(tool_calls=[piece(id="a", name="f", arguments='{"city":"Paris"}')])
END, ENDS_WITH_CALLS = chunk("stop"), chunk("tool_calls")


@pytest.mark.parametrize(
    ("chunks", "content"),
    [
        pytest.param(
            [chunk(content="Let me look"), CALL, ENDS_WITH_CALLS, DONE],
            [text("Let me look"), WEATHER],
            id="the first delta of a call after text is kept",
        ),
        pytest.param(
            [chunk(reasoning_content="Hm"), chunk(content="First "), chunk(content="words"), END, DONE],
            [thought("Hm"), text("First words")],
            id="the first words after reasoning are kept",
        ),
        pytest.param(
            [chunk(role="assistant", content=""), CALL, ENDS_WITH_CALLS, DONE],
            [WEATHER],
            id="no empty text stands before a call",
        ),
        pytest.param(
            [chunk(content="Hi", tool_calls=[]), chunk(content=" you", tool_calls=[]), END, DONE],
            [text("Hi you")],
            id="an empty list of calls beside text is no call",
        ),
        pytest.param(
            [chunk(reasoning="Hm"), chunk(reasoning="m"), chunk(content="ok"), END, DONE],
            [thought("Hmm"), text("ok")],
            id="reasoning is never text, under either of its names",
        ),
        pytest.param([chunk("stop", content="All of it"), DONE], [text("All of it")], id="text beside the end is kept"),
        pytest.param(
            [chunk(role="assistant", content="Now"), chunk(content="!"), END, DONE],
            [text("Now!")],
            id="text of the very first chunk is kept",
        ),
        pytest.param(
            [
                chunk(
                    tool_calls=[
                        piece(0, id="a", name="f", arguments='{"city":"Paris"}'),
                        piece(1, id="b", name="f", arguments='{"city":"Rome"}'),
                    ]
                ),
                ENDS_WITH_CALLS,
                DONE,
            ],
            [WEATHER, WEATHER | {"input": {"city": "Rome"}}],
            id="several calls in one chunk are all kept",
        ),
        pytest.param(
            [
                chunk(tool_calls=[piece(0, id="a", name="f"), piece(1, id="b", name="f")]),
                chunk(tool_calls=[piece(0, '{"city":'), piece(1, '{"city":')]),
                chunk(tool_calls=[piece(1, '"Rome"}'), piece(0, '"Paris"}')]),
                ENDS_WITH_CALLS,
                DONE,
            ],
            [WEATHER, WEATHER | {"input": {"city": "Rome"}}],
            id="interleaved pieces of calls reach their own call",
        ),
        pytest.param(
            [chunk(content="Look: ", tool_calls=[piece(id="a", name="f", arguments='{"city":"Paris"}')]), END, DONE],
            [text("Look: "), WEATHER],
            id="text and a call in one delta are both kept",
        ),
        pytest.param(
            [CALL, chunk(content="and so"), END, DONE], [WEATHER, text("and so")], id="text after a call is kept"
        ),
        pytest.param(
            [chunk(tool_calls=[piece(id="a", name="f")]), ENDS_WITH_CALLS, DONE],
            [WEATHER | {"input": {}}],
            id="a call without arguments has an empty input",
        ),
        pytest.param(
            [chunk(tool_calls=[piece(id="a", name="f", arguments="no JSON")]), ENDS_WITH_CALLS, DONE],
            [WEATHER | {"input": {"_raw": "no JSON"}}],
            id="arguments that are no JSON are not our defect",
        ),
        pytest.param(
            [chunk(content="Hm. "), chunk(reasoning_content="Wait"), chunk(content="No."), END, DONE],
            [text("Hm. "), thought("Wait"), text("No.")],
            id="reasoning after text is kept",
        ),
        pytest.param(
            [chunk(reasoning_content="A"), CALL, chunk(reasoning_content="B"), END, DONE],
            [thought("A"), WEATHER, thought("B")],
            id="each of several reasoning blocks is kept, and signed",
        ),
        pytest.param(
            [chunk(content="Gr\u00fc\u00dfe \u2028 \U0001f600"), END, DONE],
            [text("Gr\u00fc\u00dfe \u2028 \U0001f600")],
            id="text keeps every character",
        ),
    ],
)
def test_nothing_of_an_answer_is_lost(chunks: list[bytes], content: list[dict[str, Any]]) -> None:
    assert blocks(*chunks) == content


def test_characters_and_frames_may_be_split_anywhere() -> None:
    whole = b"".join([chunk(content="Gr\u00fc\u00dfe \U0001f600"), END, DONE]).replace(b"\n", b"\r\n")
    raw = whole.replace(rb"\u00fc", "\u00fc".encode()).replace(rb"\u00df", "\u00df".encode())

    assert blocks(*(raw[at : at + 1] for at in range(len(raw)))) == [text("Gr\u00fc\u00dfe \U0001f600")]


def test_no_delta_of_arguments_is_empty() -> None:
    heard = stream(chunk(tool_calls=[piece(id="a", name="f")]), chunk(tool_calls=[piece(arguments="{}")]), END, DONE)
    deltas = [frame["delta"]["partial_json"] for frame in frames(heard) if frame["type"] == "content_block_delta"]

    assert all(deltas)


def test_a_stream_has_one_start_complete_and_with_a_prompt() -> None:
    heard = stream(
        chunk(role="assistant"), chunk(reasoning_content="x"), chunk(role="assistant", content="y"), END, DONE
    )
    (start,) = [frame["message"] for frame in frames(heard) if frame["type"] == "message_start"]

    assert (start["type"], start["role"], start["content"]) == ("message", "assistant", [])
    assert start["usage"]["input_tokens"] > 0


def test_the_end_does_not_wait_for_usage() -> None:
    answer = message(chunk(content="Hi"), END, DONE)

    assert answer["stop_reason"] == "end_turn"
    assert answer["usage"]["input_tokens"] > 0
    assert answer["usage"]["output_tokens"] > 0


def test_cached_tokens_are_counted_once() -> None:
    counted = message(chunk(content="Hi"), END, usage(prompt=20, cached=15), DONE)["usage"]

    assert (counted["input_tokens"], counted["cache_read_input_tokens"], counted["output_tokens"]) == (5, 15, 4)


def test_two_calls_with_one_id_are_two_calls() -> None:
    answer = message(
        chunk(
            tool_calls=[piece(0, id="same", name="f", arguments="{}"), piece(1, id="same", name="f", arguments="{}")]
        ),
        ENDS_WITH_CALLS,
        DONE,
    )
    first, second = [block["id"] for block in answer["content"]]

    assert first == "same"
    assert second not in ("", "same")


@pytest.mark.parametrize("reason", ["eos", "COMPLETE", "", "stop"])
def test_a_reason_that_nobody_knows_is_an_ordinary_end(reason: str) -> None:
    answer = message(chunk(reason, content="Hi"), DONE)

    assert (answer["stop_reason"], answer.get("stop_sequence")) == ("end_turn", None)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(b'data: {"error":{"message":"no","type":"server_error"}}\n\n', id="an error object"),
        pytest.param(b'data: {"choices":[],"error":{"message":"no","code":502}}\n\n', id="an error beside choices"),
        pytest.param(b"data: {nonsense\n\n", id="no JSON"),
        pytest.param(b"", id="the end of the connection"),
    ],
)
def test_a_broken_answer_ends_in_a_named_event_and_never_well(broken: bytes) -> None:
    heard = stream(chunk(content="Half of"), broken)
    last = frames(heard)[-1]

    assert b"event: error\ndata: " in heard.body
    assert (last["type"], last["error"]["type"]) == ("error", "api_error")
    assert not any(frame["type"] == "message_stop" for frame in frames(heard))


def test_streams_share_nothing() -> None:
    head = Head("01994a3e-0000-7000-8000-000000000000", 0, "m", 1)
    answers = [[ev.text(word), ev.call(word, "f"), ev.arguments("{}"), ev.finished()] for word in ("one", "two")]
    together = [MessageStream(head), MessageStream(head)]
    bodies = [one.start() for one in together]
    for turn in zip(*answers, strict=True):
        bodies = [body + one.feed([event]) for body, one, event in zip(bodies, together, turn, strict=True)]
    alone = [one.start() + one.feed(answer) for answer in answers if (one := MessageStream(head))]

    assert bodies == alone


# ---- requests ----

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}


def use(call_id: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": "f", "input": {}}


def result(call_id: str, *content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": list(content), **more}


def turn(role: str, *content: Any) -> dict[str, Any]:
    return {"role": role, "content": list(content)}


def sent(upstream: str, *turns: Any, **members: Any) -> Any:
    """The request that an upstream gets for these turns of an Anthropic caller."""
    body = {"model": "m", "max_tokens": 9, "messages": [turn("user", text("hi")), *turns], **members}
    made = read_messages(json.dumps(body).encode()).generation
    request = upstream_request(made, upstream=upstream, dialect=pb.DIALECT_ANTHROPIC)
    return json.loads((write_messages if upstream == "anthropic" else write_chat)(request).body)


def test_an_image_in_a_result_never_stands_between_results() -> None:
    turns = sent(
        "openai",
        turn("assistant", use("a"), use("b")),
        turn("user", result("a", IMAGE), result("b", text("2")), text("go on")),
    )["messages"]

    assert [message["role"] for message in turns] == ["user", "assistant", "tool", "tool", "user"]


def test_instructions_stay_where_they_stand_and_out_of_calls() -> None:
    turns = sent(
        "openai",
        turn("system", text("mid")),
        turn("assistant", use("a")),
        turn("system", text("held")),
        turn("user", result("a", text("1"))),
    )["messages"]

    assert [message["role"] for message in turns] == ["user", "system", "assistant", "tool", "system"]


def test_a_failed_tool_is_said_to_have_failed() -> None:
    turns = sent("openai", turn("assistant", use("a")), turn("user", result("a", text("no disk"), is_error=True)))

    assert turns["messages"][-1]["content"] == "Error: no disk"


def test_the_kind_of_a_tool_is_no_part_of_its_schema() -> None:
    schema = {"type": "object", "properties": {"type": {"type": "string"}}}
    (tool,) = sent("openai", tools=[{"type": "custom", "name": "f", "input_schema": schema}])["tools"]

    assert tool["function"]["parameters"] == schema


def test_reasoning_of_earlier_turns_reaches_its_provider() -> None:
    signed = {"type": "thinking", "thinking": "Hm", "signature": "EvQB"}
    unsigned = {"type": "thinking", "thinking": "Hm", "signature": UNSIGNED}
    kept = sent("anthropic", turn("assistant", signed, unsigned, text("ok")), turn("user", text("more")))["messages"][1]

    assert kept["content"] == [signed, text("ok")]


@pytest.mark.parametrize("call_id", ["functions.Bash:0", "call_1", "a.b:c", "mwsid_x"])
def test_ids_of_any_form_reach_upstreams_that_take_few(call_id: str) -> None:
    turns = sent("anthropic", turn("assistant", use(call_id)), turn("user", result(call_id, text("1"))))["messages"]
    asked, answered = turns[1]["content"][0]["id"], turns[2]["content"][0]["tool_use_id"]

    assert asked == answered
    assert set(asked) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    assert sent("openai", turn("assistant", use(call_id)))["messages"][-1]["tool_calls"][0]["id"] == call_id


def test_long_names_of_tools_are_shortened_and_restored() -> None:
    name = "mcp__" + "long_" * 20
    (tool,) = sent("openai", tools=[{"name": name, "input_schema": {}}])["tools"]

    assert len(tool["function"]["name"]) <= 64
    made = pb.Generation(tools=[pb.Tool(name=name)])
    request = request_from("anthropic", "openai", stream=True, made=_asking(made))
    heard = hear(
        [chunk(tool_calls=[piece(id="a", name=tool["function"]["name"], arguments="{}")]), END, DONE],
        request,
        "anthropic",
    )
    assert folded(heard)["content"][0]["name"] == name


def _asking(made: pb.Generation) -> pb.Generation:
    made.messages.add(role=pb.ROLE_USER).content.add().text.text = "hi"
    return made


# ---- from an upstream of the same dialect ----

DETAILS = {"type": "refusal", "category": "cyber", "explanation": "Ask https://provider.test/terms"}
REFUSED = {"stop_reason": "refusal", "stop_sequence": None, "stop_details": DETAILS}
OPENING = {"id": "m", "type": "message", "role": "assistant", "model": "x", "content": [], "usage": {"input_tokens": 5}}


@pytest.mark.parametrize("is_stream", [True, False], ids=["stream", "whole"])
def test_a_refusal_says_why_without_naming_its_provider(is_stream: bool) -> None:
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": OPENING},
        {"type": "message_delta", "delta": REFUSED, "usage": {"output_tokens": 0}},
        {"type": "message_stop"},
    ]
    streamed = [b"event: %b\ndata: %b\n\n" % (e["type"].encode(), json.dumps(e).encode()) for e in events]
    whole = [json.dumps(OPENING | REFUSED | {"usage": {"input_tokens": 5, "output_tokens": 0}}).encode()]
    request = request_from("anthropic", "anthropic", stream=is_stream)
    answer = folded(hear(streamed if is_stream else whole, request, "anthropic"))

    assert (answer["stop_reason"], answer["content"]) == ("refusal", [])
    assert answer["stop_details"] == DETAILS | {"explanation": "Ask [removed]"}


SECRET = (
    "Bad key sk-ant-api03-abcdefghij1234567890 of org-Ab12Cd34Ef at https://api.provider.test/v1 for me@provider.test"
)


@pytest.mark.parametrize(
    ("status", "kind", "public"),
    [
        pytest.param(400, "invalid_request_error", 400, id="a request at fault is the caller's"),
        pytest.param(401, "authentication_error", 503, id="our key is not the caller's"),
        pytest.param(402, "billing_error", 503, id="our bill is not the caller's"),
        pytest.param(403, "permission_error", 503, id="our rights are not the caller's"),
        pytest.param(404, "not_found_error", 503, id="a model that is missing there is not missing here"),
        pytest.param(429, "rate_limit_error", 529, id="our limit there is not the caller's"),
        pytest.param(529, "overloaded_error", 529, id="overload is overload"),
        pytest.param(500, "api_error", 503, id="their defect is no defect of ours"),
        pytest.param(504, "timeout_error", 504, id="slow is slow"),
    ],
)
def test_what_an_upstream_says_of_us_never_reaches_the_caller(status: int, kind: str, public: int) -> None:
    body = json.dumps({"type": "error", "error": {"type": kind, "message": SECRET}, "request_id": "req_up"}).encode()
    request = request_from("anthropic", "anthropic", stream=True)
    heard = hear([body], request, "anthropic", status=status, is_whole=True)

    assert heard.status == public
    assert json.loads(heard.body)["type"] == "error"
    for word in (b"sk-ant", b"org-Ab", b"provider.test", b"req_up"):
        assert word not in heard.body
