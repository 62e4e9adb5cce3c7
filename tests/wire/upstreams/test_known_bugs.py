"""Bugs that other gateways shipped, each as a test of what a stream, a reply or a request looked like with them."""

import json
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest
from mws.inference.v1 import generation_pb2 as pb

from edge.anthropic.requests import read_messages
from edge.openai.requests import read_chat
from services.routing_and_inference.ports import UpstreamRequest
from services.routing_and_inference.upstreams import anthropic_request, dialects, openai_request, tool_ids
from tests.builders import CannedHttp, CannedResponse, fold, read_answer, run_now, upstream_request
from tests.fakes import Reply, openai_chunk, openai_frame, openai_message
from tests.wire.through import SHAPES, TYPED, check_stream, folded, hear, request_from, said
from tests.wire.upstreams.frames import (
    DONE,
    ROLE,
    STOP,
    TOOLS,
    WHOLE_A,
    WHOLE_B,
    choice,
    ended,
    pieces_of,
    say,
    started,
    text,
    use,
)
from tests.wire.upstreams.frames import STOPPED as MESSAGE_STOP

A, B = ("a", "f", '{"x":1}'), ("b", "g", '{"y":2}')


def blocks(frames: list[bytes], upstream: str = "openai") -> list[dict[str, Any]]:
    """The content of the message that an Anthropic client folds."""
    heard = hear(frames, request_from("anthropic", upstream, stream=True), "anthropic")
    check_stream(heard)
    content: list[dict[str, Any]] = folded(heard)["content"]
    return content


def kinds(frames: list[bytes], upstream: str = "openai") -> list[str]:
    return [block["type"] for block in blocks(frames, upstream)]


def test_the_payload_that_switches_blocks_is_not_lost() -> None:
    frames = [openai_chunk({"reasoning_content": "Hm"}), text("First"), pieces_of(WHOLE_A), text("Last"), TOOLS, DONE]
    thinking, first, call, last = blocks(frames)
    assert (thinking["thinking"], first["text"], call["input"], last["text"]) == ("Hm", "First", {"x": 1}, "Last")


def test_no_empty_block_stands_before_a_tool_call() -> None:
    frames = [
        openai_chunk({"role": "assistant", "content": ""}),
        openai_chunk({"content": "", "tool_calls": [WHOLE_A]}),
    ]
    heard = hear([*frames, TOOLS, DONE], request_from("anthropic", "openai", stream=True), "anthropic")
    assert kinds([*frames, TOOLS, DONE]) == ["tool_use"]
    assert b'"partial_json":""' not in heard.body
    assert b"text_delta" not in heard.body


def test_an_empty_list_of_calls_beside_content_is_no_call() -> None:
    assert kinds([ROLE, openai_chunk({"content": "Hi", "tool_calls": []}), STOP, DONE]) == ["text"]


def test_reasoning_is_no_text_and_the_message_starts_once() -> None:
    frames = [openai_chunk({"reasoning_content": "Hm"}), text("Hi"), STOP, DONE]
    heard = hear(frames, request_from("anthropic", "openai", stream=True), "anthropic")
    assert kinds(frames) == ["thinking", "text"]
    assert heard.body.count(b"event: message_start\n") == 1


def calling(upstream: str, word: str) -> list[bytes]:
    if upstream == "openai":
        return [ROLE, text(word), pieces_of({**WHOLE_A, "id": word}), TOOLS, DONE]
    return [started(), *say(0, word), *use(1, word, "f", '{"x":1}'), ended("tool_use"), MESSAGE_STOP]


class TwoAnswers:
    """An HTTP client with an answer for each of two requests."""

    def __init__(self, *answers: list[bytes]) -> None:
        self._answers = list(answers)

    async def post(self, request: Any) -> CannedResponse:
        return CannedResponse(self._answers.pop(0), {"content-type": "text/event-stream"})


@pytest.mark.parametrize("upstream", ["openai", "anthropic"])
def test_concurrent_streams_share_nothing(upstream: str) -> None:
    http: Any = TwoAnswers(calling(upstream, "one"), calling(upstream, "two"))
    adapter = dialects(http).generation[upstream]
    request = request_from("anthropic", upstream, stream=True)
    streams = [cast("AsyncGenerator[Any, None]", adapter.generate(request)) for _ in range(2)]
    events: list[list[Any]] = [[], []]

    async def alternate() -> None:
        running = {0, 1}
        while running:
            for at in sorted(running):
                batch = await anext(streams[at], None)
                if batch is None:
                    running.discard(at)
                events[at] += batch or []

    run_now(alternate())
    assert [fold(heard)[:2] for heard in events] == [
        [("text", word), ("call", word, "f", '{"x":1}')] for word in ("one", "two")
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_defect_of_the_answer_is_no_normal_end(shape: str) -> None:
    heard = hear([ROLE, text("Hi"), b"data: {]\n\n"], request_from(shape, "openai", stream=True), shape)
    assert b"message_stop" not in heard.body
    assert b"[DONE]" not in heard.body
    with pytest.raises(TYPED):
        folded(heard)


def test_content_in_the_chunk_of_the_reason_is_kept() -> None:
    assert blocks([ROLE, openai_chunk({"content": "Hi"}, "stop"), DONE])[0]["text"] == "Hi"


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([pieces_of(WHOLE_A, WHOLE_B)], id="both whole in one chunk"),
        pytest.param(
            [
                pieces_of({**WHOLE_A, "function": {"name": "f", "arguments": '{"x"'}}),
                pieces_of({**WHOLE_B, "function": {"name": "g", "arguments": '{"y"'}}),
                pieces_of(
                    {"index": 0, "function": {"arguments": ":1}"}}, {"index": 1, "function": {"arguments": ":2}"}}
                ),
            ],
            id="fragments for both in one chunk",
        ),
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_no_parallel_call_is_lost(frames: list[bytes], shape: str) -> None:
    heard = hear([ROLE, *frames, TOOLS, DONE], request_from(shape, "openai", stream=True), shape)
    check_stream(heard)
    assert said(heard).calls == (A, B)


def test_content_and_a_call_in_one_delta_are_both_kept() -> None:
    assert kinds([openai_chunk({"content": "Hi", "tool_calls": [WHOLE_A]}), TOOLS, DONE]) == ["text", "tool_use"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "error", [{"error": {"code": 502, "message": ["odd"], "metadata": {}}}, {"error": [1]}, {"error": True}]
)
def test_an_error_of_an_odd_shape_is_still_an_error(error: Any, shape: str) -> None:
    for payload in (error, {**error, "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "error"}]}):
        heard = hear([ROLE, text("Hi"), openai_frame(payload)], request_from(shape, "openai", stream=True), shape)
        check_stream(heard)
        with pytest.raises(TYPED):
            folded(heard)


def test_the_first_chunk_s_content_is_kept() -> None:
    assert blocks([openai_chunk({"role": "assistant", "content": "Hi"}), STOP, DONE])[0]["text"] == "Hi"


def test_the_end_of_a_message_needs_no_usage_chunk() -> None:
    heard = hear([text("Hi"), STOP, DONE], request_from("anthropic", "openai", stream=True), "anthropic")
    assert b'"stop_reason":"end_turn"' in heard.body


def test_message_start_has_its_type_role_and_a_count_above_zero() -> None:
    heard = hear([text("Hi"), STOP, DONE], request_from("anthropic", "openai", stream=True), "anthropic")
    message = json.loads(heard.body.split(b"\n")[1][6:])["message"]
    assert (message["type"], message["role"], message["content"]) == ("message", "assistant", [])
    assert message["usage"]["input_tokens"] > 0


def test_thinking_has_a_signature_whoever_thought() -> None:
    (thinking, _) = blocks([openai_chunk({"reasoning_content": "Hm"}), text("Hi"), STOP, DONE])
    assert thinking["signature"]


def test_calls_of_one_id_stay_two_and_every_thought_stays() -> None:
    frames = [
        openai_chunk({"reasoning_content": "one"}),
        text("a"),
        openai_chunk({"reasoning_content": "two"}),
        pieces_of(WHOLE_A),
        pieces_of({**WHOLE_B, "id": "a"}),
        TOOLS,
        DONE,
    ]
    heard = blocks(frames)
    assert [block["type"] for block in heard] == ["thinking", "text", "thinking", "tool_use", "tool_use"]
    assert (heard[0]["thinking"], heard[2]["thinking"]) == ("one", "two")
    assert (heard[3]["id"], heard[4]["name"]) == ("a", "g")
    assert heard[4]["id"] not in ("a", "")


@pytest.mark.parametrize("reason", ["eos", "weird", "COMPLETE", "stop_sequence"])
def test_an_unknown_reason_is_an_ordinary_end(reason: str) -> None:
    heard = hear(
        [text("Hi"), openai_chunk({}, reason), DONE], request_from("anthropic", "openai", stream=True), "anthropic"
    )
    message = folded(heard)
    assert (message["stop_reason"], message.get("stop_sequence")) == ("end_turn", None)


@pytest.mark.parametrize("shape", SHAPES)
def test_cached_tokens_are_counted_once(shape: str) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105,
             "prompt_tokens_details": {"cached_tokens": 80}}  # fmt: skip
    frames = [text("Hi"), STOP, openai_frame({"choices": [], "usage": usage}), DONE]
    heard = hear(frames, request_from(shape, "openai", stream=True), shape)
    assert said(heard).input_tokens == 100
    if shape == "anthropic":
        assert [folded(heard)["usage"][name] for name in ("input_tokens", "cache_read_input_tokens")] == [20, 80]
    whole = {**openai_message_of("Hi"), "usage": usage}
    assert said(hear([json.dumps(whole).encode()], request_from(shape, "openai", stream=False), shape)) == said(heard)


def openai_message_of(said_text: str) -> dict[str, Any]:
    return dict(openai_message(Reply(said_text)))


@pytest.mark.parametrize("data", [b"data: ", b"data:"])
def test_characters_cut_in_two_and_windows_line_ends_are_read(data: bytes) -> None:
    stream = b"".join([text("Grüße 🙂"), STOP, DONE]).replace(b"data: ", data).replace(b"\n", b"\r\n")
    request = upstream_request(pb.Generation(stream=True))
    for at in range(1, len(stream)):
        assert fold(read_answer([stream[:at], stream[at:]], request))[0] == ("text", "Grüße 🙂")


def test_an_error_frame_names_its_event_for_anthropic_clients() -> None:
    heard = hear([text("Hi")], request_from("anthropic", "openai", stream=True), "anthropic")
    assert heard.body.rpartition(b"event: ")[2].startswith(b'error\ndata: {"type":"error","error":{')


def test_leaving_a_stream_leaves_its_upstream() -> None:
    class Response(CannedResponse):
        is_closed = False

        def close(self) -> None:
            self.is_closed = True

    response = Response([ROLE, text("Hi")], {"content-type": "text/event-stream"})
    adapter = dialects(CannedHttp(response)).generation["openai"]
    batches = cast("AsyncGenerator[Any, None]", adapter.generate(request_from("openai", "openai", stream=True)))

    async def leave() -> None:
        await anext(batches)
        await batches.aclose()

    run_now(leave())
    assert response.is_closed


# ---- requests ----


def to_openai(body: dict[str, Any], **options: Any) -> Any:
    """What an OpenAI-compatible upstream is sent for a body of POST /v1/messages."""
    ask = read_messages(json.dumps({"model": "m", "max_tokens": 9, **body}).encode())
    request = upstream_request(ask.generation, dialect=ask.dialect, options=options)
    return json.loads(openai_request.write_request(request).body)


def to_anthropic(request: UpstreamRequest) -> Any:
    return json.loads(anthropic_request.write_request(request).body)


def use_of(call_id: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": "f", "input": {}}


def result_of(call_id: str, *content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": list(content), **more}


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
ASKED = {"role": "user", "content": "go"}


def test_nothing_stands_between_the_results_of_calls() -> None:
    answers = [result_of("a", IMAGE), result_of("b", {"type": "text", "text": "x"}), {"type": "text", "text": "And?"}]
    said_before = {"role": "assistant", "content": [use_of("a"), use_of("b")]}
    told = {"role": "system", "content": "Note"}
    written = to_openai({"messages": [ASKED, said_before, told, {"role": "user", "content": answers}]})["messages"]
    assert [message["role"] for message in written] == ["user", "assistant", "tool", "tool", "system", "user"]


def test_instructions_inside_the_conversation_do_not_move_to_its_head() -> None:
    body = {"system": "Head", "messages": [ASKED, {"role": "system", "content": "Now"}]}
    assert [m["content"] for m in to_openai(body)["messages"]] == ["Head", "go", "Now"]
    assert [m["content"] for m in to_openai(body, system_in_messages="fold")["messages"]] == ["Head", "go\n\nNow"]


@pytest.mark.parametrize("arguments", ["", "not json", '{"x":', "[1]", "null"])
def test_arguments_that_are_no_object_break_nothing(arguments: str) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [
        ASKED,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "x"},
    ]
    ask = read_chat(json.dumps({"model": "m", "messages": messages}).encode())
    written = to_anthropic(upstream_request(ask.generation, upstream="anthropic", dialect=ask.dialect))
    assert isinstance(written["messages"][1]["content"][0]["input"], dict)
    for shape in SHAPES:
        frames = [pieces_of({"index": 0, "id": "a", "function": {"name": "f", "arguments": arguments}}), TOOLS, DONE]
        whole = {"choices": [{"index": 0, "message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}
        check_stream(hear(frames, request_from(shape, "openai", stream=True), shape))
        folded(hear([json.dumps(whole).encode()], request_from(shape, "openai", stream=False), shape))


def test_a_failed_tool_says_so() -> None:
    failed = result_of("a", {"type": "text", "text": "no such file"}, is_error=True)
    messages = [ASKED, {"role": "assistant", "content": [use_of("a")]}, {"role": "user", "content": [failed]}]
    assert to_openai({"messages": messages})["messages"][-1]["content"] == "Error: no such file"


def test_thoughts_of_the_history_go_on_to_whoever_can_read_them() -> None:
    thought = {"type": "thinking", "thinking": "Hm", "signature": "proof"}
    messages = [ASKED, {"role": "assistant", "content": [thought, {"type": "text", "text": "Hi"}]}, ASKED]
    ask = read_messages(json.dumps({"model": "m", "max_tokens": 9, "messages": messages}).encode())
    native = to_anthropic(upstream_request(ask.generation, upstream="anthropic", dialect=ask.dialect))
    assert native["messages"][1]["content"][0] == thought
    written = to_openai({"messages": messages}, history_reasoning="reasoning_content")["messages"]
    assert written[1]["reasoning_content"] == "Hm"


def test_our_own_signature_never_reaches_a_provider() -> None:
    (thinking, *_) = blocks([openai_chunk({"reasoning_content": "Hm"}), text("Hi"), STOP, DONE])
    messages = [ASKED, {"role": "assistant", "content": [thinking, {"type": "text", "text": "Hi"}]}, ASKED]
    ask = read_messages(json.dumps({"model": "m", "max_tokens": 9, "messages": messages}).encode())
    native = to_anthropic(upstream_request(ask.generation, upstream="anthropic", dialect=ask.dialect))
    assert native["messages"][1]["content"] == [{"type": "text", "text": "Hi"}]


def test_the_type_of_a_tool_is_no_part_of_its_schema() -> None:
    tool = {"type": "custom", "name": "f", "input_schema": {"type": "object", "properties": {}}}
    (written,) = to_openai({"messages": [ASKED], "tools": [tool]})["tools"]
    assert written["function"] == {"name": "f", "parameters": {"type": "object", "properties": {}}}


def test_long_names_and_odd_ids_reach_the_upstream_in_a_form_that_it_takes() -> None:
    name = "mcp__" + "x" * 100
    tool = {"name": name, "input_schema": {"type": "object"}}
    (written,) = to_openai({"messages": [ASKED], "tools": [tool]})["tools"]
    assert len(written["function"]["name"]) <= 64
    call = {"id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [ASKED, {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "functions.f:0", "content": "x"}]  # fmt: skip
    ask = read_chat(json.dumps({"model": "m", "messages": messages}).encode())
    sent = to_anthropic(upstream_request(ask.generation, upstream="anthropic", dialect=ask.dialect))["messages"]
    ids = (sent[1]["content"][0]["id"], sent[2]["content"][0]["tool_use_id"])
    assert ids == (tool_ids.encode("functions.f:0"),) * 2
    assert tool_ids.decode(ids[0]) == "functions.f:0"


def test_a_refusal_s_own_words_and_a_matched_stop_are_told() -> None:
    heard = hear(
        [openai_chunk({"refusal": "No."}), STOP, DONE], request_from("anthropic", "openai", stream=True), "anthropic"
    )
    assert (folded(heard)["stop_reason"], said(heard).text) == ("refusal", "No.")
    made = pb.Generation(stop_sequences=["END"])
    made.messages.add(role=pb.ROLE_USER).content.add().text.text = "x"
    frames = [text("Hi"), choice(delta={}, finish_reason="stop", matched_stop="END"), DONE]
    heard = hear(frames, request_from("anthropic", "openai", stream=True, made=made), "anthropic")
    assert (folded(heard)["stop_reason"], folded(heard)["stop_sequence"]) == ("stop_sequence", "END")
