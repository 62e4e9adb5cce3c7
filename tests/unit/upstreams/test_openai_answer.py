"""Answers of OpenAI-compatible upstreams: every known misbehaviour becomes a legal sequence of events, or a failure."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.routing_and_inference.ports import FailureKind
from services.routing_and_inference.upstreams.http import HttpFailureKind
from tests.builders import fold, generation, read_answer, read_broken_answer, upstream_request, usage
from tests.fakes import Call, Reply, openai_chunk, openai_frame, openai_frames, openai_message

DONE = b"data: [DONE]\n\n"
STOP = openai_chunk({}, "stop")
REQUEST = upstream_request(generation(stream=True, stop_sequences=["END"]))


def piece(index: int | None = 0, **fields: Any) -> dict[str, Any]:
    """A fragment of a tool call: `name` and `arguments` go into its function."""
    function = {name: fields.pop(name) for name in ("name", "arguments") if name in fields}
    return {**({} if index is None else {"index": index}), **fields, "function": function}


def tools(*pieces: dict[str, Any]) -> bytes:
    return openai_chunk({"tool_calls": list(pieces)})


def text(value: str) -> bytes:
    return openai_chunk({"content": value})


CALL_A = ("call", "a", "f", '{"x":1}')
CALL_B = ("call", "b", "g", '{"y":2}')
STOPPED, CALLED = ("finish", "stop"), ("finish", "tool_calls")


@pytest.mark.parametrize(
    ("frames", "runs"),
    [
        pytest.param([openai_chunk({"role": "assistant", "content": ""}), text("Hi"), STOP, DONE],
                     [("text", "Hi"), STOPPED], id="a plain stream"),
        pytest.param([text("Hi"), openai_chunk({}, "length"), DONE], [("text", "Hi"), ("finish", "length")],
                     id="length"),
        pytest.param([openai_frame({"choices": [], "id": "", "prompt_filter_results": []}), text("Hi"), STOP, DONE],
                     [("text", "Hi"), STOPPED], id="a first chunk with empty choices"),
        pytest.param([text("Hi"), openai_frame({"choices": [{"index": 0, "delta": None}]}), STOP, DONE],
                     [("text", "Hi"), STOPPED], id="a null delta"),
        pytest.param([text("Hi"), openai_frame({"choices": [{"index": 0}]}), STOP, DONE],
                     [("text", "Hi"), STOPPED], id="a missing delta"),
        pytest.param([openai_chunk({"content": "Hi"}, "stop"), DONE], [("text", "Hi"), STOPPED],
                     id="content and finish reason in one chunk"),
        pytest.param([text("Hi"), STOP, text(" there"), DONE], [("text", "Hi there"), STOPPED],
                     id="content after the finish reason"),
        pytest.param([openai_chunk({"content": "Hi"}, ""), text(" you"), STOP, DONE], [("text", "Hi you"), STOPPED],
                     id="an empty finish reason before the end"),
        pytest.param([text("Hi"), DONE], [("text", "Hi"), STOPPED], id="no finish reason, but DONE"),
        pytest.param([text("Hi"), STOP], [("text", "Hi"), STOPPED], id="no DONE, but a finish reason"),
        pytest.param([text("Hi"), STOP, b"data: [DONE] trailing \n\n", text("x")], [("text", "Hi"), STOPPED],
                     id="text behind DONE, and a chunk after it"),
        pytest.param([text("Hi"), openai_frame({"choices": [{"index": 1, "delta": {"content": "No"}}]}), STOP, DONE],
                     [("text", "Hi"), STOPPED], id="further choices are ignored"),
        pytest.param([openai_chunk({"content": "Hi", "tool_calls": []}), STOP, DONE], [("text", "Hi"), STOPPED],
                     id="an empty list of tool calls beside content"),
        pytest.param([openai_chunk({"reasoning_content": "Hm", "content": "Hi", "tool_calls": [piece(id="a", name="f",
                      arguments='{"x":1}')]}, "tool_calls"), DONE],
                     [("thinking", "Hm"), ("text", "Hi"), CALL_A, CALLED], id="everything in the first chunk"),
        pytest.param([openai_chunk({"reasoning": "H"}), openai_chunk({"reasoning_content": "m", "reasoning": "m"}),
                      text("Hi"), STOP, DONE], [("thinking", "Hm"), ("text", "Hi"), STOPPED],
                     id="reasoning under either name"),
        pytest.param([openai_chunk({"content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}), STOP,
                     DONE],
                     [("text", "Hi"), STOPPED], id="content as parts"),
        pytest.param([tools(piece(id="a", type="function", name="f", arguments="")), tools(piece(arguments='{"x"')),
                      tools(piece(arguments=":1}")), openai_chunk({}, "tool_calls"), DONE], [CALL_A, CALLED],
                     id="a tool call in fragments"),
        pytest.param([tools(piece(id="a", name="f", arguments='{"x":1}'), piece(1, id="b", name="g",
                     arguments='{"y":2}')),
                      openai_chunk({}, "tool_calls"), DONE], [CALL_A, CALL_B, CALLED],
                      id="two whole calls in one chunk"),
        pytest.param([tools(piece(id="a", name="f", arguments='{"x"')), tools(piece(1, id="b", name="g",
                     arguments='{"y"')),
                      tools(piece(arguments=":1}")), tools(piece(1, arguments=":2}")), openai_chunk({}, "tool_calls"),
                      DONE],
                     [CALL_A, CALL_B, CALLED], id="interleaved fragments of parallel calls"),
        pytest.param([tools(piece(id="a", name="f")), tools(piece(1, id="b", name="g")), tools(piece(1,
                     arguments='{"y":2}')),
                      tools(piece(arguments='{"x":1}')), openai_chunk({}, "tool_calls"), DONE],
                     [CALL_A, CALL_B, CALLED], id="both calls begin before either has arguments"),
        pytest.param([tools(piece(1, id="a", name="f", arguments='{"x":1}')), openai_chunk({}, "tool_calls"), DONE],
                     [CALL_A, CALLED], id="the first index is 1"),
        pytest.param([tools(piece(None, id="a", name="f", arguments='{"x"')), tools(piece(None, arguments=":1}")),
                      openai_chunk({}, "tool_calls"), DONE], [CALL_A, CALLED], id="no index at all"),
        pytest.param([tools(piece(None, id="a", name="f", arguments='{"x":1}'),
                            piece(None, id="b", name="g", arguments='{"y":2}')), openai_chunk({}, "tool_calls"), DONE],
                     [CALL_A, CALL_B, CALLED], id="two calls without index, told apart by id"),
        pytest.param([tools(piece(id="a", name="f", arguments='{"x":1}')), tools(piece(id="b", name="g",
                     arguments='{"y":2}')),
                      openai_chunk({}, "tool_calls"), DONE], [CALL_A, CALL_B, CALLED], id="every call has index 0"),
        pytest.param([tools(piece(id="a", name="f", arguments="")), tools(piece(id="a", name="f", arguments='{"x":1}')),
                      openai_chunk({}, "tool_calls"), DONE], [CALL_A, CALLED], id="id and name repeated"),
        pytest.param([tools(piece(id="a", name="f", arguments="")), tools(piece(id="", name="", arguments='{"x":1}')),
                      openai_chunk({}, "tool_calls"), DONE], [CALL_A, CALLED], id="id and name empty later"),
        pytest.param([tools(piece(id="a", name="get_", arguments="")), tools(piece(name="weather", arguments="")),
                      tools(piece(arguments='{"x":1}')), openai_chunk({}, "tool_calls"), DONE],
                     [("call", "a", "get_weather", '{"x":1}'), CALLED], id="a name in two pieces"),
        pytest.param([tools(piece(arguments='{"x"')), tools(piece(id="a", name="f", arguments=":1}")),
                      openai_chunk({}, "tool_calls"), DONE], [CALL_A, CALLED], id="arguments before id and name"),
        pytest.param([tools(piece(id="a", name="f", arguments=None)), tools(piece(arguments="{}")),
                      openai_chunk({}, "tool_calls"), DONE], [("call", "a", "f", "{}"), CALLED],
                      id="null arguments, then {}"),
        pytest.param([tools(piece(id="a", name="f", arguments="")), openai_chunk({}, "tool_calls"), DONE],
                     [("call", "a", "f", ""), CALLED], id="no arguments"),
        pytest.param([tools(piece(id="a", name="f", arguments={"x": 1})), openai_chunk({}, "tool_calls"), DONE],
                     [CALL_A, CALLED], id="arguments as an object"),
        pytest.param([tools(piece(id="a", name="f", arguments='"{\\"x\\":1}"')), openai_chunk({}, "tool_calls"), DONE],
                     [CALL_A, CALLED], id="arguments encoded twice"),
        pytest.param([tools(piece(id="a", name="f", arguments="[1]")), openai_chunk({}, "tool_calls"), DONE],
                     [("call", "a", "f", '{"value":[1]}'), CALLED], id="arguments that are no object"),
        pytest.param([tools(piece(id="a", name="f", arguments="x=1")), openai_chunk({}, "tool_calls"), DONE],
                     [("call", "a", "f", '{"_raw":"x=1"}'), CALLED], id="arguments that are no JSON"),
        pytest.param([tools(piece(id="a", name="f", arguments='{"x":1}')), STOP, DONE], [CALL_A, CALLED],
                     id="stop beside a call means tool_calls"),
        pytest.param([text("Hi"), openai_chunk({}, "tool_calls"), DONE], [("text", "Hi"), STOPPED],
                     id="tool_calls without a call means stop"),
        pytest.param([text("I'll look. "), tools(piece(id="a", name="f", arguments='{"x":1}')), text("Wait"), STOP,
                     DONE],
                     [("text", "I'll look. "), CALL_A, ("text", "Wait"), CALLED], id="text after a tool call"),
        pytest.param([tools(piece(id="a", name="f", arguments='{"x"')), text("Wait"), tools(piece(arguments=":1}")),
                     STOP, DONE],
                     [CALL_A, ("text", "Wait"), CALLED], id="text in the middle of a call waits for its end"),
        pytest.param([tools(piece(id="a", name="f", arguments='{"x":"lo')), openai_chunk({}, "length"), DONE],
                     [("call", "a", "f", '{"x":"lo'), ("finish", "length")], id="length in the middle of a call"),
        pytest.param([openai_chunk({"function_call": {"name": "f", "arguments": '{"x":'}}),
                      openai_chunk({"function_call": {"arguments": "1}"}}), openai_chunk({}, "function_call"), DONE],
                     [("call", "call_minted", "f", '{"x":1}'), CALLED], id="the legacy function call"),
        pytest.param([openai_chunk({"refusal": "I can't."}), STOP, DONE], [("text", "I can't."), ("finish", "refusal")],
                     id="a refusal"),
        pytest.param([text("Hm"), openai_chunk({}, "content_filter"), DONE], [("text", "Hm"), ("finish", "refusal")],
                     id="a filter"),
        pytest.param([text("Hi"), openai_chunk({}, "eos"), DONE], [("text", "Hi"), STOPPED], id="an unknown reason"),
        pytest.param([text("Hi"), openai_frame({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop",
                      "stop_reason": "END"}]}), DONE], [("text", "Hi"), ("finish", "stop_sequence", "END")],
                     id="the stop string that matched, vLLM"),
        pytest.param([text("Hi"), openai_frame({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop",
                      "matched_stop": 128001}]}), DONE], [("text", "Hi"), STOPPED],
                      id="a stop token is no stop string"),
        pytest.param([b"\xef\xbb\xbf: OPENROUTER PROCESSING\r\n\r\n", text("Hi").replace(b"\n", b"\r\n"), STOP, DONE],
                     [("text", "Hi"), STOPPED], id="BOM, comments, CRLF"),
        pytest.param([b'data: {"choices":[{"index":0,"delta":{"content":"a\xff"}}]}\n\n', STOP, DONE],
                     [("text", "a\ufffd"), STOPPED], id="invalid UTF-8 is replaced"),
        pytest.param([b'data: {"choices":[{"index":0,"delta":{"content":"a\\ud83d"}}]}\n\n', STOP, DONE],
                     [("text", "a\ufffd"), STOPPED], id="half a surrogate pair is replaced"),
        pytest.param([openai_frame({"choices": [{"index": "0", "delta": {"content": "Hi"}, "finish_reason": None}],
                      "usage": "none"}), STOP, DONE], [("text", "Hi"), STOPPED], id="fields of unusual types"),
    ],
)  # fmt: skip
def test_a_stream_becomes_legal_events(
    frames: list[bytes], runs: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.routing_and_inference.upstreams.openai_chat.mint_tool_call_id", lambda: "call_minted")
    assert fold(read_answer(frames, REQUEST)) == runs
    assert fold(read_answer([b"".join(frames)], REQUEST)) == runs


def test_missing_and_repeated_ids_are_minted() -> None:
    frames = [
        tools(piece(0, id="", name="f", arguments="{}"), piece(1, id="same", name="g", arguments="{}")),
        tools(piece(2, id="same", name="h", arguments="{}")),
        openai_chunk({}, "tool_calls"),
        DONE,
    ]
    runs = fold(read_answer(frames, REQUEST))
    ids = [run[1] for run in runs if run[0] == "call"]
    assert [run[2] for run in runs if run[0] == "call"] == ["f", "g", "h"]
    assert ids[1] == "same"
    assert len(set(ids)) == 3


def test_a_second_call_streams_once_the_first_is_complete() -> None:
    frames = [tools(piece(id="a", name="f", arguments='{"x":1}')), tools(piece(1, id="b", name="g", arguments='{"y"'))]
    events, _ = read_broken_answer(frames, REQUEST, ends_with=HttpFailureKind.CUT)
    assert fold(events) == [CALL_A, ("call", "b", "g", '{"y"')]


@pytest.mark.parametrize(
    ("extra", "counts"),
    [
        pytest.param([openai_frame({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}})],
                     {"input_tokens": 9, "output_tokens": 4}, id="in a last chunk of its own"),
        pytest.param([openai_chunk({}, "stop", usage={"prompt_tokens": 9, "completion_tokens": 4})],
                     {"input_tokens": 9, "output_tokens": 4}, id="in the finish chunk"),
        pytest.param([openai_chunk({}, "stop", x_groq={"id": "r", "usage": {"prompt_tokens": 9,
                     "completion_tokens": 4}})],
                     {"input_tokens": 9, "output_tokens": 4}, id="under x_groq"),
        pytest.param([openai_frame({"choices": [{"index": 0, "delta": {}, "usage": {"prompt_tokens": 9,
                      "completion_tokens": 4}}]})], {"input_tokens": 9, "output_tokens": 4}, id="inside the choice"),
        pytest.param([openai_chunk({}, None, usage={"prompt_tokens": 9, "completion_tokens": 1}),
                      openai_chunk({}, None, usage={"prompt_tokens": 9, "completion_tokens": 4}),
                      openai_chunk({}, None, usage=None)],
                     {"input_tokens": 9, "output_tokens": 4}, id="on every chunk, the last one counts"),
        pytest.param([openai_chunk({}, None, usage={"prompt_tokens": "9", "completion_tokens": 4.0,
                     "total_tokens": None})],
                     {"input_tokens": 9, "output_tokens": 4}, id="as text and float"),
        pytest.param([openai_chunk({}, None, usage={"prompt_tokens": 307, "completion_tokens": 26, "total_tokens": 560,
                      "completion_tokens_details": {"reasoning_tokens": 227}})],
                     {"input_tokens": 307, "output_tokens": 253, "reasoning_tokens": 227},
                     id="reasoning beside the completion"),
        pytest.param([openai_chunk({}, None, usage={"prompt_tokens": 100, "completion_tokens": 4,
                     "prompt_tokens_details":
                      {"cached_tokens": 60, "cache_write_tokens": 10}})],
                     {"input_tokens": 30, "output_tokens": 4, "cache_read_tokens": 60, "cache_write_5m_tokens": 10},
                     id="cached tokens are counted once"),
        pytest.param([openai_chunk({}, None, usage={"prompt_tokens": -1, "completion_tokens": True})], {},
                     id="nonsense"),
        pytest.param([], {}, id="none at all"),
    ],
)  # fmt: skip
def test_usage_is_found_wherever_it_is(extra: list[bytes], counts: dict[str, int]) -> None:
    events = read_answer([text("Hi"), STOP, *extra, DONE], REQUEST)
    assert usage(events) == counts


@pytest.mark.parametrize(
    ("frames", "kind", "said"),
    [
        pytest.param([text("Hi")], FailureKind.CUT, [("text", "Hi")], id="an end without finish reason"),
        pytest.param([], FailureKind.CUT, [], id="an empty stream"),
        pytest.param([DONE], FailureKind.CUT, [], id="DONE and nothing else"),
        pytest.param([tools(piece(id="a", name="f", arguments='{"x"')), DONE], FailureKind.CUT,
                     [("call", "a", "f", '{"x"')], id="DONE in the middle of a call"),
        pytest.param([text("Hi"), b"data: {oops}\n\n"], FailureKind.MALFORMED, [("text", "Hi")], id="no JSON"),
        pytest.param([b"data: 7\n\n"], FailureKind.MALFORMED, [], id="JSON that is no object"),
        pytest.param([text("Hi"), openai_frame({"error": {"message": "boom", "type": "server_error", "code": 500}})],
                     FailureKind.UNAVAILABLE, [("text", "Hi")], id="an error object"),
        pytest.param([openai_frame({"error": {"message": "slow down", "code": 429}})], FailureKind.OVERLOADED, [],
                     id="an error with an integer code"),
        pytest.param([text("Hi"), openai_frame({"choices": [{"index": 0, "delta": {"content": ""},
                     "finish_reason": "error"}],
                      "error": {"code": 502, "message": "Network connection lost."}})],
                     FailureKind.UNAVAILABLE, [("text", "Hi")], id="an error inside a chunk that has choices"),
        pytest.param([openai_frame({"error": "boom"})], FailureKind.UNAVAILABLE, [], id="an error as text"),
        pytest.param([openai_frame({"object": "error", "message": "boom", "code": 400})], FailureKind.REJECTED, [],
                     id="an error that nobody wrapped"),
        pytest.param([openai_frame({"detail": "Not Found"})], FailureKind.UNAVAILABLE, [], id="a detail"),
        pytest.param([openai_frame({"error": {"message": "too long", "code": "context_length_exceeded"}})],
                     FailureKind.CONTEXT_TOO_LONG, [], id="the context is full"),
    ],
)  # fmt: skip
def test_a_broken_stream_is_a_failure_after_what_it_said(
    frames: list[bytes], kind: FailureKind, said: list[tuple[str, ...]]
) -> None:
    events, failure = read_broken_answer(frames, REQUEST)
    assert (fold(events), failure.kind, failure.accepted) == (said, kind, True)


def test_a_cut_after_the_finish_reason_is_an_end() -> None:
    events = read_answer([text("Hi"), STOP], REQUEST)
    assert fold(events) == [("text", "Hi"), STOPPED]


@pytest.mark.parametrize(
    ("body", "runs"),
    [
        pytest.param({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}, [("text", "Hi"), STOPPED],
                     id="no index"),
        pytest.param({"choices": [{"message": {"content": None, "refusal": "No."}, "finish_reason": "stop"}]},
                     [("text", "No."), ("finish", "refusal")], id="a refusal"),
        pytest.param({"choices": [{"message": {"content": "", "tool_calls": [
                      {"id": "a", "function": {"name": "f", "arguments": '{"x":1}'}},
                      {"id": "b", "function": {"name": "g", "arguments": '{"y":2}'}}]}, "finish_reason": "stop"}]},
                     [CALL_A, CALL_B, CALLED], id="calls without index and type"),
        pytest.param({"choices": [{"message": {"content": "Hi"}, "finish_reason": None}]}, [("text", "Hi"), STOPPED],
                     id="no finish reason"),
    ],
)  # fmt: skip
def test_a_whole_answer_becomes_legal_events(body: dict[str, Any], runs: list[tuple[str, ...]]) -> None:
    assert fold(read_answer([json.dumps(body).encode()], REQUEST, whole=True)) == runs


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        pytest.param(b"<html>Bad gateway</html>", FailureKind.MALFORMED, id="HTML"),
        pytest.param(b"", FailureKind.CUT, id="nothing"),
        pytest.param(b"{}", FailureKind.CUT, id="an empty object"),
        pytest.param(b'{"choices":[]}', FailureKind.CUT, id="no choice"),
        pytest.param(
            b'{"error":{"message":"x","type":"server_error"}}', FailureKind.UNAVAILABLE, id="an error with 200"
        ),
    ],
)
def test_a_whole_answer_that_is_none_is_a_failure(body: bytes, kind: FailureKind) -> None:
    events, failure = read_broken_answer([body], REQUEST, whole=True)
    assert (fold(events), failure.kind) == ([], kind)


def test_a_stream_without_its_label_is_read_as_one() -> None:
    frames = openai_frames(Reply(text="Hello"))
    assert fold(read_answer(frames, REQUEST, whole=True)) == [("text", "Hello"), STOPPED]


arguments = st.dictionaries(st.text(max_size=5), st.text(max_size=8) | st.integers(), max_size=3).map(json.dumps)
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
    stream = b"".join(openai_frames(reply))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]
    streamed = read_answer(pieces, REQUEST)
    whole = read_answer([json.dumps(openai_message(reply)).encode()], REQUEST, whole=True)
    normal = [tuple("" if part == "{}" else part for part in run) for run in fold(streamed)]
    assert normal == [tuple("" if part == "{}" else part for part in run) for run in fold(whole)]
    assert usage(streamed) == usage(whole)


def test_every_single_cut_gives_the_same_events() -> None:
    reply = Reply(text="Grüße 🙂", thinking="hm…", calls=[Call("f", '{"ä":"🙂"}', "a"), Call("g", '{"y":[1]}', "b")])
    stream = b"".join(openai_frames(reply))
    expected = fold(read_answer([stream], REQUEST))
    for at in range(1, len(stream)):
        assert fold(read_answer([stream[:at], stream[at:]], REQUEST)) == expected
    assert fold(read_answer([stream[at : at + 1] for at in range(len(stream))], REQUEST)) == expected
