"""Answers of Anthropic-dialect upstreams: every known misbehaviour becomes a legal sequence of events, or a failure."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mws.inference.v1 import generation_pb2 as pb

from services.routing_and_inference.ports import FailureKind
from services.routing_and_inference.upstreams import tool_ids
from tests.builders import fold, generation, read_answer, read_broken_answer, upstream_request, usage
from tests.fakes import Call, Reply, anthropic_frame, anthropic_frames, anthropic_message

REQUEST = upstream_request(generation(stream=True), upstream="anthropic")
NATIVE = upstream_request(generation(stream=True), upstream="anthropic", dialect=pb.DIALECT_ANTHROPIC)

OPENING: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "stop_reason": None}
STARTED = anthropic_frame({"type": "message_start", "message": {**OPENING, "usage": {"input_tokens": 5}}})
STOPPED = anthropic_frame({"type": "message_stop"})


def start(index: int, **block: Any) -> bytes:
    return anthropic_frame({"type": "content_block_start", "index": index, "content_block": block})


def delta(index: int, **value: Any) -> bytes:
    return anthropic_frame({"type": "content_block_delta", "index": index, "delta": value})


def stop(index: int) -> bytes:
    return anthropic_frame({"type": "content_block_stop", "index": index})


def ended(reason: str | None = "end_turn", sequence: str | None = None, **more: Any) -> bytes:
    end = {"stop_reason": reason, "stop_sequence": sequence}
    return anthropic_frame({"type": "message_delta", "delta": end, "usage": {"output_tokens": 3}, **more})


def say(index: int, text: str) -> list[bytes]:
    return [start(index, type="text", text=""), delta(index, type="text_delta", text=text), stop(index)]


def use(index: int, call_id: str, name: str, *pieces: str) -> list[bytes]:
    deltas = [delta(index, type="input_json_delta", partial_json=piece) for piece in pieces]
    return [start(index, type="tool_use", id=call_id, name=name, input={}), *deltas, stop(index)]


HI = ("text", "Hi")
CALL_A = ("call", "a", "f", '{"x":1}')
CALL_B = ("call", "b", "g", '{"y":2}')
END, CALLED = ("finish", "stop"), ("finish", "tool_calls")


@pytest.mark.parametrize(
    ("frames", "runs"),
    [
        pytest.param([STARTED, *say(0, "Hi"), ended(), STOPPED], [HI, END], id="a plain stream"),
        pytest.param([anthropic_frame({"type": "message_start", "message": {}}), *say(0, "Hi"), ended(), STOPPED], [HI,
                     END],
                     id="message_start without usage, type and role"),
        pytest.param([anthropic_frame({"type": "message_start", "message": {"usage": None}}), *say(0, "Hi"), ended(),
                     STOPPED],
                     [HI, END], id="message_start with null usage"),
        pytest.param([*say(0, "Hi"), ended(), STOPPED], [HI, END], id="no message_start"),
        pytest.param([STARTED, *say(0, "Hi"), anthropic_frame({"type": "message_delta",
                     "delta": {"stop_reason": "end_turn"}}),
                      STOPPED], [HI, END], id="message_delta without usage"),
        pytest.param([STARTED, *say(0, "Hi"), ended(usage={}), STOPPED], [HI, END],
                     id="message_delta with empty usage"),
        pytest.param([STARTED, *say(0, "Hi"), STOPPED], [HI, END], id="no message_delta"),
        pytest.param([STARTED, *say(0, "Hi"), ended()], [HI, END], id="no message_stop"),
        pytest.param([STARTED, start(0, type="text"), delta(0, type="text_delta", text="Hi"), stop(0), ended(),
                     STOPPED],
                     [HI, END], id="a text block that begins without text"),
        pytest.param([STARTED, start(0, type="thinking"), delta(0, type="thinking_delta", thinking="Hm"), stop(0),
                      *say(1, "Hi"), ended(), STOPPED], [("thinking", "Hm"), HI, END], id="thinking without signature"),
        pytest.param([STARTED, start(0, type="thinking", thinking="", signature=""),
                      delta(0, type="thinking_delta", thinking=""), delta(0, type="thinking_delta", thinking="Hm"),
                      delta(0, type="signature_delta", signature="proof"), stop(0), *say(1, "Hi"), ended(), STOPPED],
                     [("thinking", "Hm"), ("signature", "proof"), HI, END], id="thinking with its proof"),
        pytest.param([STARTED, start(0, type="thinking", thinking="", signature=""),
                      delta(0, type="signature_delta", signature="proof"), stop(0), *say(1, "Hi"), ended(), STOPPED],
                     [("signature", "proof"), HI, END], id="thinking whose text is omitted"),
        pytest.param([STARTED, start(0, type="redacted_thinking", data="secret"), stop(0), *say(1, "Hi"), ended(),
                     STOPPED],
                     [("redacted", "secret"), HI, END], id="redacted thinking"),
        pytest.param([frame.partition(b"\n")[2] for frame in [STARTED, *say(0, "Hi"), ended(), STOPPED]], [HI, END],
                     id="frames with data only"),
        pytest.param([STARTED, *say(0, "Hi")[:2], *use(1, "a", "f", '{"x":1}')[:2], ended("tool_use"), STOPPED],
                     [HI, CALL_A, CALLED], id="no content_block_stop"),
        pytest.param([STARTED, delta(0, type="text_delta", text="Hi"), stop(0), ended(), STOPPED], [HI, END],
                     id="no content_block_start"),
        pytest.param([STARTED, *say(1, "Hi"), ended(), STOPPED], [HI, END], id="the first index is 1"),
        pytest.param([STARTED, use(0, "a", "f")[0], use(1, "b", "g")[0], delta(1, type="input_json_delta",
                     partial_json='{"y"'),
                      delta(0, type="input_json_delta", partial_json='{"x"'),
                      delta(1, type="input_json_delta", partial_json=":2}"),
                      delta(0, type="input_json_delta", partial_json=":1}"), stop(1), stop(0), ended("tool_use"),
                      STOPPED],
                     [CALL_A, CALL_B, CALLED], id="two tool blocks open, their deltas interleaved"),
        pytest.param([STARTED, start(0, type="tool_use", id="a", name="f"),
                      delta(0, type="input_json_delta", partial_json='{"x":1}'), stop(0), ended("tool_use"), STOPPED],
                     [CALL_A, CALLED], id="tool_use without input"),
        pytest.param([STARTED, start(0, type="tool_use", id="a", name="f", input={"x": 1}), stop(0), ended("tool_use"),
                     STOPPED],
                     [CALL_A, CALLED], id="tool_use with its whole input in the start"),
        pytest.param([STARTED, *use(0, "a", "f", ""), ended("tool_use"), STOPPED], [("call", "a", "f", ""), CALLED],
                     id="a tool without arguments"),
        pytest.param([STARTED, start(0, type="mystery", x=1), stop(0), *say(1, "Hi"), ended(), STOPPED], [HI, END],
                     id="an unknown block type, for a caller of another dialect"),
        pytest.param([STARTED, anthropic_frame({"type": "surprise", "x": 1}), anthropic_frame({"type": "ping"}),
                     *say(0, "Hi"),
                      ended(), STOPPED], [HI, END], id="an unknown event"),
        pytest.param([STARTED, *say(0, "Hi"), STARTED, *say(1, " you"), ended(), STOPPED], [("text", "Hi you"), END],
                     id="a second message_start"),
        pytest.param([STARTED, *say(0, "Hi"), ended("max_tokens"), ended(None), STOPPED], [HI, ("finish", "length")],
                     id="a second message_delta without reason"),
        pytest.param([STARTED, ended("refusal"), STOPPED], [("finish", "refusal")], id="no block at all"),
        pytest.param([STARTED, *say(0, "Hi"), ended(), STOPPED, b"data: [DONE]\n\n"], [HI, END], id="a trailing DONE"),
        pytest.param([STARTED, *say(0, "Hi"), b"event: data\ndata: [DONE]\n\n", ended(), STOPPED], [HI, END],
                     id="an odd DONE"),
        pytest.param([b": c\n\n", *(f.replace(b"\n", b"\r\n") for f in [STARTED, *say(0, "Hi"), ended(), STOPPED])],
                     [HI, END],
                     id="comments and CRLF"),
        pytest.param([STARTED, *say(0, "Hi"), ended("stop_sequence", "END"), STOPPED],
                     [HI, ("finish", "stop_sequence", "END")], id="the stop sequence that matched"),
        pytest.param([STARTED, *say(0, "Hi"), ended("pause_turn"), STOPPED], [HI, ("finish", "paused")], id="a pause"),
        pytest.param([STARTED, *say(0, "Hi"), ended("model_context_window_exceeded"), STOPPED],
                     [HI, ("finish", "context_full")], id="a full context"),
        pytest.param([STARTED, *say(0, "Hi"), ended("compaction"), STOPPED], [HI, END], id="an unknown reason"),
        pytest.param([STARTED, *use(0, "a", "f", '{"x":1}'), ended("end_turn"), STOPPED], [CALL_A, CALLED],
                     id="end_turn beside a call"),
        pytest.param([STARTED, *use(0, tool_ids.encode("functions.f:0"), "f", '{"x":1}'), ended("tool_use"), STOPPED],
                     [("call", "functions.f:0", "f", '{"x":1}'), CALLED], id="an id of ours comes back as it was"),
        pytest.param([STARTED, *use(0, "a", "f", '{"x":"lo'), ended("max_tokens"), STOPPED],
                     [("call", "a", "f", '{"x":"lo'), ("finish", "length")], id="length in the middle of a call"),
    ],
)  # fmt: skip
def test_a_stream_becomes_legal_events(frames: list[bytes], runs: list[tuple[str, ...]]) -> None:
    assert fold(read_answer(frames, REQUEST)) == runs
    assert fold(read_answer([b"".join(frames)], REQUEST)) == runs


@pytest.mark.parametrize(
    ("frames", "runs"),
    [
        pytest.param([start(0, type="server_tool_use", id="s", name="web_search", input={}),
                      delta(0, type="input_json_delta", partial_json='{"query":"x"}'), stop(0)],
                     [("opaque", "server_tool_use",
                       '{"type":"server_tool_use","id":"s","name":"web_search","input":{"query":"x"}}')],
                       id="a server tool"),
        pytest.param([start(0, type="web_search_tool_result", tool_use_id="s", content=[{"url": "u"}]), stop(0)],
                     [("opaque", "web_search_tool_result",
                       '{"type":"web_search_tool_result","tool_use_id":"s","content":[{"url":"u"}]}')],
                       id="its result"),
        pytest.param([start(0, type="text", text="", citations=[]), delta(0, type="text_delta", text="Hi"),
                      delta(0, type="citations_delta", citation={"cited_text": "h"}), stop(0)],
                     [("opaque", "text", '{"type":"text","text":"Hi","citations":[{"cited_text": "h"}]}')],
                     id="a text with citations"),
        pytest.param([start(0, type="text", text="", citations=[]), delta(0, type="text_delta", text="Hi"), stop(0)],
                     [HI],
                     id="a text that might have had citations"),
    ],
)  # fmt: skip
def test_what_has_no_neutral_form_reaches_callers_of_the_dialect_whole(
    frames: list[bytes], runs: list[tuple[str, ...]]
) -> None:
    assert fold(read_answer([STARTED, *frames, ended(), STOPPED], NATIVE)) == [*runs, END]


def test_a_text_of_a_request_that_wants_citations_waits_for_them() -> None:
    asked = generation(stream=True)
    asked.messages[0].content.add(extra_json='{"citations":{"enabled":true}}').document.text = "source"
    request = upstream_request(asked, upstream="anthropic", dialect=pb.DIALECT_ANTHROPIC)
    cited = delta(0, type="citations_delta", citation={"a": 1})
    frames = [start(0, type="text", text=""), delta(0, type="text_delta", text="Hi"), cited, stop(0), *say(1, "!")]
    runs = [("opaque", "text", '{"type":"text","text":"Hi","citations":[{"a": 1}]}'), ("text", "!"), END]
    assert fold(read_answer([STARTED, *frames, ended(), STOPPED], request)) == runs


def test_a_text_with_citations_is_text_for_callers_of_another_dialect() -> None:
    frames = [start(0, type="text", text="", citations=[]), delta(0, type="text_delta", text="Hi"), stop(0)]
    assert fold(read_answer([STARTED, *frames, ended(), STOPPED], REQUEST)) == [HI, END]


def test_usage_is_cumulative_and_keeps_cache_classes_apart() -> None:
    first = {"input_tokens": 43, "cache_read_input_tokens": 7, "output_tokens": 1, "cache_creation_input_tokens": 30,
             "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20}}  # fmt: skip
    opening = anthropic_frame({"type": "message_start", "message": {**OPENING, "usage": first}})
    events = read_answer(
        [opening, *say(0, "Hi"), ended(usage={"input_tokens": 61, "output_tokens": 9}), STOPPED], REQUEST
    )
    assert events[0].message_started.usage.input_tokens == 43
    assert usage(events) == {
        "input_tokens": 61,
        "output_tokens": 9,
        "cache_read_tokens": 7,
        "cache_write_5m_tokens": 10,
        "cache_write_1h_tokens": 20,
    }


@pytest.mark.parametrize(
    ("frames", "kind", "said"),
    [
        pytest.param([STARTED, *say(0, "Hi")], FailureKind.CUT, [HI], id="an end without reason"),
        pytest.param([STARTED], FailureKind.CUT, [], id="an end before content"),
        pytest.param([], FailureKind.CUT, [], id="nothing"),
        pytest.param([STOPPED], FailureKind.CUT, [], id="message_stop and nothing else"),
        pytest.param([STARTED, *use(0, "a", "f", '{"x"')[:2], STOPPED], FailureKind.CUT, [("call", "a", "f", '{"x"')],
                     id="message_stop in the middle of a call"),
        pytest.param([STARTED, *say(0, "Hi"), anthropic_frame({"type": "error", "error": {"type": "overloaded_error",
                      "message": "Overloaded"}})], FailureKind.OVERLOADED, [HI], id="overloaded in the middle"),
        pytest.param([b'data: {"type":"error","error":{"type":"api_error","message":"x"}}\n\n'],
                     FailureKind.UNAVAILABLE, [],
                     id="an error without event line"),
        pytest.param([b'event: error\ndata: {"message":"x"}\n\n'], FailureKind.UNAVAILABLE, [],
                     id="an error without type"),
        pytest.param([STARTED, b"event: content_block_delta\ndata: {oops\n\n"], FailureKind.MALFORMED, [],
                     id="no JSON"),
    ],
)  # fmt: skip
def test_a_broken_stream_is_a_failure_after_what_it_said(
    frames: list[bytes], kind: FailureKind, said: list[tuple[str, ...]]
) -> None:
    events, failure = read_broken_answer(frames, REQUEST)
    assert (fold(events), failure.kind, failure.accepted) == (said, kind, True)


arguments = st.dictionaries(st.text(max_size=5), st.text(max_size=8) | st.integers(0, 99), max_size=3).map(
    lambda made: json.dumps(made, separators=(",", ":"), ensure_ascii=False)
)
replies = st.builds(
    Reply,
    text=st.text(max_size=30),
    thinking=st.text(max_size=20),
    calls=st.lists(arguments, max_size=3).map(
        lambda made: [Call(f"tool_{n}", given, f"id_{n}") for n, given in enumerate(made)]
    ),
    piece=st.integers(1, 9),
)


@given(replies, st.data())
def test_a_stream_folds_to_the_whole_answer_wherever_it_is_cut(reply: Reply, data: st.DataObject) -> None:
    stream = b"".join(anthropic_frames(reply))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]
    streamed = read_answer(pieces, REQUEST)
    whole = read_answer([json.dumps(anthropic_message(reply)).encode()], REQUEST, whole=True)
    assert _without_empty_objects(fold(streamed)) == _without_empty_objects(fold(whole))
    assert usage(streamed) == usage(whole)


def _without_empty_objects(runs: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """No arguments at all mean the same as `{}`."""
    return [(*run[:3], "") if run[0] == "call" and run[3] == "{}" else run for run in runs]


def test_every_single_cut_gives_the_same_events() -> None:
    reply = Reply(text="Grüße 🙂", thinking="hm…", calls=[Call("f", '{"ä":"🙂"}', "a"), Call("g", '{"y":[1]}', "b")])
    stream = b"".join(anthropic_frames(reply))
    expected = fold(read_answer([stream], REQUEST))
    for at in range(1, len(stream)):
        assert fold(read_answer([stream[:at], stream[at:]], REQUEST)) == expected
    assert fold(read_answer([stream[at : at + 1] for at in range(len(stream))], REQUEST)) == expected
